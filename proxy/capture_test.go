package proxy

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/proxy/listen"
)

// TestSandboxGone ends the lease of the listeners: the proxy is not ready until it has others.
func TestSandboxGone(t *testing.T) {
	m := newMesh(t)
	cfg := m.serverConfig(nil)
	leases := make(chan *listen.Held, 1)
	cfg.Capture.Acquire = func(ctx context.Context) (*listen.Held, error) {
		select {
		case h := <-leases:
			return h, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	first := listen.Own(nil, m.inbound)
	leases <- first
	p := run(t, cfg)
	awaitReady(t, p)
	_, changed := p.ready.State()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("it stays ready")
	}
	if reasons, _ := p.ready.State(); len(reasons) != 1 || !strings.Contains(reasons[0], "docker compose restart web-mesh-sandbox") {
		t.Errorf("not ready because %q", reasons)
	}
	leases <- listen.Own(nil, listenTCP(t, "127.0.0.1:0"))
	awaitReady(t, p)
}
