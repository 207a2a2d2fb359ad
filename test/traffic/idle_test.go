package traffic

import (
	"net/netip"
	"testing"
	"time"
)

// TestIdleTimeoutOfTCP has a DestinationRule's connectionPool.tcp.idleTimeout reach the connections to its host.
func TestIdleTimeoutOfTCP(t *testing.T) {
	s := open(t, "productpage-v1", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec: {host: ratings, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 90s}}}}
`)
	got := s.table.Load().Session(netip.MustParseAddrPort("10.0.0.3:5432"), false, "", 0).Target.Settings
	if got == nil || time.Duration(got.SessionIdle) != 90*time.Second {
		t.Errorf("settings %+v, want an idle time of 90s", got)
	}
}
