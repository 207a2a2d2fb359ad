package explain

import (
	"strings"
	"testing"
)

const streamConfig = `
kind: Service
apiVersion: v1
metadata: {name: db}
spec: {selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
kind: Service
apiVersion: v1
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
kind: Endpoints
apiVersion: v1
metadata: {name: db}
subsets: [{addresses: [{ip: 10.0.0.5}], ports: [{port: 5432}]}]
---
kind: Endpoints
apiVersion: v1
metadata: {name: web}
subsets: [{addresses: [{ip: 10.0.0.6}], ports: [{port: 80}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec: {hosts: [db], tcp: [{match: [{port: 5432}], route: [{destination: {host: web, port: {number: 80}}, weight: 30}, {destination: {host: nobody}, weight: 10}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: outside}
spec: {hosts: [pay.example], tls: [{match: [{sniHosts: [pay.example]}], route: [{destination: {host: nobody}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: calls}
spec: {hosts: [web], http: [{match: [{uri: {prefix: /shop.Cart/}, method: {exact: POST}, headers: {content-type: {exact: application/grpc}}}], route: [{destination: {host: web}}]}]}
`

func TestStreams(t *testing.T) {
	for to, want := range map[string]struct{ rule, destination, reason string }{
		"tcp://db:5432":               {"virtualservice/default/db spec.tcp[0]", "web.default.svc.cluster.local", "divided by weight among 2 destinations"},
		"tcp://10.0.0.5:5432":         {"virtualservice/default/db spec.tcp[0]", "web.default.svc.cluster.local", "divided by weight"},
		"tcp://db:5433":               {"", "db.default.svc.cluster.local", "goes to the address that the name has"},
		"tls://pay.example:443":       {"virtualservice/default/outside spec.tls[0]", "nobody.default.svc.cluster.local", "reset: nobody.default.svc.cluster.local is no service"},
		"tcp://pay.example:443":       {"", "", "nothing that the mesh knows: the connection goes where it was opened to"},
		"grpc://web:80/shop.Cart/Add": {"virtualservice/default/calls spec.http[0]", "web.default.svc.cluster.local", "goes to web"},
	} {
		var files Files
		if err := files.Add("config", strings.NewReader(streamConfig)); err != nil {
			t.Fatal(err)
		}
		e, err := files.Explain("web", Request{URL: to})
		if err != nil {
			t.Errorf("%s: %v", to, err)
			continue
		}
		if e.Rule != want.rule || e.Destination != want.destination || !strings.Contains(e.Reason, want.reason) || e.Status != nil {
			t.Errorf("%s: rule %q, destination %q, reason %q, status %v; want %+v", to, e.Rule, e.Destination, e.Reason, e.Status, want)
		}
	}
	for _, to := range []string{"tcp://db", "tls://:443", "tcp://db:99999", "tcp://db:80/path"} {
		var files Files
		if err := files.Add("config", strings.NewReader(streamConfig)); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Explain("web", Request{URL: to}); err == nil || !strings.Contains(err.Error(), "host:port") {
			t.Errorf("%s: %v", to, err)
		}
	}
}
