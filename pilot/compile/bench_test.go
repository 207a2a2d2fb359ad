package compile_test

import (
	"fmt"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
)

// thousand is a mesh of 1000 services in networks of 100 each, with a front network that 10 of each share.
func thousand() mesh.Facts {
	f := mesh.Facts{Project: "big"}
	for i := range 1000 {
		name := fmt.Sprintf("svc-%03d", i)
		w := mesh.Workload{
			Name: name, Namespace: "default", ServiceAccount: name, Identity: "spiffe://cluster.local/ns/default/sa/" + name, Role: mesh.RoleApp,
			Services: []string{name}, Labels: map[string]string{"version": "v1"}, Meshed: true, Running: true,
			Addresses: []mesh.Address{{Network: fmt.Sprintf("net-%d", i/100), IPv4: fmt.Sprintf("10.0.%d.%d", i/100, i%100+2)}},
			Ports:     []mesh.Port{{Number: 8080, Protocol: mesh.ProtocolHTTP}},
		}
		if i%100 < 10 {
			w.Addresses = append(w.Addresses, mesh.Address{Network: "front", IPv4: fmt.Sprintf("10.1.%d.%d", i/100, i%100+2)})
		}
		f.Workloads = append(f.Workloads, w)
	}
	return f
}

// BenchmarkThousandProxies is what one change costs pilot in a mesh of 1000 workloads.
func BenchmarkThousandProxies(b *testing.B) {
	view := compile.View{Facts: thousand(), TrustDomain: "cluster.local"}
	b.ReportAllocs()
	for b.Loop() {
		index := compile.New(view)
		for _, w := range view.Facts.Workloads {
			if _, _, err := index.Compile(w.Name); err != nil {
				b.Fatal(err)
			}
		}
	}
}
