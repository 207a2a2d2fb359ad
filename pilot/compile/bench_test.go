package compile_test

import (
	"fmt"
	"testing"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
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

// BenchmarkBigGroup is one change in a mesh of 1000 services with 5 workloads and a VirtualService each, whose proxies all
// see everything.
func BenchmarkBigGroup(b *testing.B) {
	view := bigView(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := compile.New(view).Compile("svc-000-v0"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck is what it costs to check one object of 1000 that are applied one after the other: with all made anew
// each time, and like the Index before.
func BenchmarkCheck(b *testing.B) {
	view := bigView(b)
	for name, reuse := range map[string]bool{"anew": false, "like": true} {
		b.Run(name, func(b *testing.B) {
			v := view
			for i := 0; b.Loop(); i++ {
				x := compile.New(v)
				if found := x.Check(v.Intent[i%len(v.Intent)]); len(found) > 0 {
					b.Fatal(found)
				}
				if reuse {
					v.Like = x
				}
			}
		})
	}
}

// bigView is a mesh of 1000 services with 5 workloads and a VirtualService each, on one network.
func bigView(b *testing.B) compile.View {
	b.Helper()
	view := compile.View{TrustDomain: "cluster.local"}
	for i := range 5000 {
		service, version := fmt.Sprintf("svc-%03d", i/5), fmt.Sprintf("v%d", i%5)
		view.Facts.Workloads = append(view.Facts.Workloads, mesh.Workload{
			Name: service + "-" + version, Namespace: "default", ServiceAccount: service, Identity: "spiffe://cluster.local/ns/default/sa/" + service, Role: mesh.RoleApp,
			Services: []string{service}, Labels: map[string]string{"version": version}, Meshed: true, Running: true,
			Addresses: []mesh.Address{{Network: "net", IPv4: fmt.Sprintf("10.0.%d.%d", i/100, i%100+2)}},
			Ports:     []mesh.Port{{Number: 8080, Protocol: mesh.ProtocolHTTP}},
		})
	}
	kind, err := api.Find(api.Kinds(), "networking.istio.io/v1", "VirtualService")
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		host := fmt.Sprintf("svc-%03d", i)
		o := &api.Object{Kind: kind, Spec: &networking.VirtualService{
			Hosts: []string{host}, Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: host}}}}},
		}}
		o.Meta.Name, o.Meta.Namespace = host, "default"
		view.Intent = append(view.Intent, o)
	}
	return view
}
