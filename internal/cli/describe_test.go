package cli

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
)

// described is a mesh with a service web of one workload, and a policy for it.
func described(t *testing.T) *fakeEngine {
	t.Helper()
	index := compile.New(compile.View{TrustDomain: "cluster.local", Facts: mesh.Facts{Workloads: []mesh.Workload{
		{
			Name: "web-v1", Namespace: "default", Identity: "spiffe://cluster.local/ns/default/sa/web", Role: mesh.RoleApp, Services: []string{"web"}, Meshed: true,
			Labels: map[string]string{"app": "web"}, Running: true, Health: "healthy", Addresses: []mesh.Address{{Network: "shop", IPv4: "10.0.0.2"}},
			Ports: []mesh.Port{{Number: 80, Protocol: mesh.ProtocolHTTP, Published: []string{"8080"}}},
		},
		{Name: "db", Namespace: "default", Role: mesh.RoleApp, Services: []string{"db"}, Addresses: []mesh.Address{{Network: "shop", IPv4: "10.0.0.3"}}},
	}}})
	e := &fakeEngine{apis: map[string]*httptest.Server{}}
	for role, kinds := range map[mesh.Role][]*api.Kind{mesh.RolePilot: api.Networking(), mesh.RoleCitadel: api.Security(), mesh.RoleMixer: api.Config()} {
		mux := http.NewServeMux()
		mux.Handle("/", apiserver.New(apiserver.Config{Kinds: kinds, Store: apiserver.NewMemory(1), Version: "test", Log: slog.New(slog.DiscardHandler)}))
		answer := func(pattern string, of func(*http.Request) (any, bool)) {
			mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
				v, ok := of(r)
				if !ok {
					http.Error(w, `{"error":"there is none"}`, http.StatusNotFound)
					return
				}
				_ = json.NewEncoder(w).Encode(v)
			})
		}
		answer("GET /debug/describe", func(r *http.Request) (any, bool) {
			q := r.URL.Query()
			if w := q.Get("workload"); w != "" {
				return index.DescribeWorkload(w)
			}
			return index.DescribeService(q.Get("service"), q.Get("namespace"))
		})
		answer("GET /debug/certs", func(*http.Request) (any, bool) {
			return []certificate{{Workload: "web-v1", Serial: "a1b2", NotAfter: time.Now().Add(90 * time.Minute)}, {Workload: "other", Serial: "c3d4"}}, true
		})
		answer("GET /debug/proxies", func(*http.Request) (any, bool) {
			r := status.Report{Proxies: []status.Proxy{{Workload: "web-v1", State: status.Nack, Error: "no room"}, {Workload: "db", State: status.Synced}}}
			if role == mesh.RolePilot {
				r.Resources = []status.Resource{{Resource: "virtualservice/default/web", Applied: 1, Proxies: 2}}
			}
			return r, true
		})
		e.run(t, "shop", "/projects/shop", role, "", mux)
	}
	return e
}

func TestDescribe(t *testing.T) {
	e := described(t)
	check(t, in(t, e, "/", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: others}
spec: {selector: {matchLabels: {app: other}}, mtls: {mode: DISABLE}}
`, "apply", "-f", "-"), 0, "", "")
	got := in(t, e, "/", "", "describe", "service", "web")
	check(t, got, 0, "service web.default.svc.cluster.local\n  port         80 http\n", "")
	for _, want := range []string{
		"web-v1: healthy; 10.0.0.2 on shop", "mutual TLS as spiffe://cluster.local/ns/default/sa/web", "certificate a1b2 until", "none names it",
		"peerauthentication/default/strict (mode STRICT",
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s", want, got.out)
		}
	}
	if strings.Contains(got.out, "others") || strings.Contains(got.out, "c3d4") {
		t.Errorf("it tells of what is another's:\n%s", got.out)
	}
	check(t, in(t, e, "/", "", "describe", "service", "db"), 0, "none: its requests get 503", "")
	check(t, in(t, e, "/", "", "describe", "workload", "db"), 0, "db: stopped; 10.0.0.3 on shop\n               has no proxy", "")
	check(t, in(t, e, "/", "", "describe", "workload", "web-v1", "-o", "json"), 0, `"serial": "a1b2"`, "")
	check(t, in(t, e, "/", "", "describe", "service", "nobody"), exitNotFound, "", "there is none")
}

func TestResourceStatus(t *testing.T) {
	e := described(t)
	for _, name := range []string{"vs/web", "virtualservice/default/web"} {
		check(t, in(t, e, "/", "", "proxy-status", name), 0, "virtualservice/default/web is applied by 1 of 2 proxies\n  web-v1: NACK no room\n", "")
	}
	check(t, in(t, e, "/", "", "proxy-status", "vs/other"), exitNotFound, "", "has no virtualservice/default/other")
	check(t, in(t, e, "/", "", "proxy-status", "web"), exitUsage, "", "want KIND/NAME")
}

func TestListeners(t *testing.T) {
	for want, s := range map[string]*snapshot.Snapshot{
		"15001 15006 15006 15000 15021 15090": {Proxy: snapshot.Workload{Ports: []snapshot.Port{{Number: 9080}}}},
		"80 443 15000 15021 15090":            {Gateways: []snapshot.GatewayServer{{Port: 80, Protocol: mesh.ProtocolHTTP}, {Port: 443, Protocol: mesh.ProtocolTLS}}},
	} {
		var ports []string
		_, rows := listenerRows(s)
		for _, r := range rows {
			ports = append(ports, r[0])
		}
		if got := strings.Join(ports, " "); got != want {
			t.Errorf("listeners are %s, want %s", got, want)
		}
	}
}
