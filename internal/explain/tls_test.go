package explain_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/internal/explain"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// What is said of each pair is what the proxies do.
func TestTLS(t *testing.T) {
	workload := func(name, ip, identity string) snapshot.Workload {
		return snapshot.Workload{Name: name, Namespace: "default", Identity: identity, Service: name, Addresses: []string{ip}}
	}
	service := func(name string, policy snapshot.Policy, endpoints ...string) snapshot.Service {
		return snapshot.Service{Host: name + ".default.svc.cluster.local", Name: name, Namespace: "default", Ports: []snapshot.Port{{Number: 80}}, Endpoints: endpoints, Policy: policy}
	}
	off := snapshot.Policy{TLS: snapshot.TLSDisable, TLSFrom: "destinationrule/default/off"}
	mutual := snapshot.Policy{TLS: snapshot.TLSMutual, TLSFrom: "destinationrule/default/on"}
	client := &snapshot.Snapshot{
		Proxy: workload("client", "10.0.0.2", "spiffe://cluster.local/ns/default/sa/client"),
		Workloads: []snapshot.Workload{
			workload("client", "10.0.0.2", "spiffe://cluster.local/ns/default/sa/client"), workload("strict", "10.0.0.3", "spiffe://cluster.local/ns/default/sa/strict"),
			workload("off", "10.0.0.4", "spiffe://cluster.local/ns/default/sa/off"), workload("plain", "10.0.0.5", ""),
		},
		Services: []snapshot.Service{
			service("all", snapshot.Policy{}, "client", "off", "plain", "strict"), service("sent-plain", off, "off", "strict"), service("wants-mutual", mutual, "off", "plain"),
		},
		Security: &snapshot.Security{Authentication: snapshot.Authentication{Peers: []snapshot.PeerTLS{{Workload: "off", Modes: snapshot.Modes{Mode: snapshot.Disable}}}}},
	}
	client.Services[0].Subsets = []snapshot.Subset{{Name: "v1", Endpoints: []string{"strict"}, Policy: off}, {Name: "v2", Endpoints: []string{"strict"}}}
	behind := service("behind", snapshot.Policy{}, "strict")
	behind.Ports[0].Target = 8080
	client.Services = append(client.Services, behind)
	modes := map[string]*snapshot.Modes{
		"strict": {Mode: snapshot.Strict, Source: "peerauthentication/default/s", Ports: []snapshot.PortMode{{Port: 8080, Mode: snapshot.Permissive, Source: "peerauthentication/default/p"}}}, "off": {Mode: snapshot.Disable, Source: "peerauthentication/default/o"}, "client": {},
	}
	pairs, err := explain.TLS(client, func(name string) *snapshot.Modes { return modes[name] }, "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range pairs {
		got = append(got, fmt.Sprintf("%s %s:%d %s %v mutual=%v server=%s %s, %s", p.Workload, p.Host[:3], p.Port, p.Subset, p.OK, p.ClientTLS, p.Server, p.ServerFrom, p.ClientFrom))
	}
	want := []string{
		"off all:80  true mutual=false server=DISABLE peerauthentication/default/o, automatic",
		"plain all:80  true mutual=false server=DISABLE no proxy, automatic",
		"strict all:80  true mutual=true server=STRICT peerauthentication/default/s, automatic",
		"strict all:80 v1 false mutual=false server=STRICT peerauthentication/default/s, destinationrule/default/off",
		"off sen:80  true mutual=false server=DISABLE peerauthentication/default/o, destinationrule/default/off",
		"strict sen:80  false mutual=false server=STRICT peerauthentication/default/s, destinationrule/default/off",
		"off wan:80  true mutual=true server=DISABLE peerauthentication/default/o, destinationrule/default/on",
		"plain wan:80  false mutual=false server=DISABLE no proxy, destinationrule/default/on",
		"strict beh:80  true mutual=true server=PERMISSIVE peerauthentication/default/p, automatic",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if one, err := explain.TLS(client, func(string) *snapshot.Modes { return nil }, "sent-plain"); err != nil || len(one) != 2 {
		t.Errorf("%d pairs of one service, %v", len(one), err)
	}
	if _, err := explain.TLS(client, func(string) *snapshot.Modes { return nil }, "none"); err == nil {
		t.Error("a service that is not there is not missed")
	}
}
