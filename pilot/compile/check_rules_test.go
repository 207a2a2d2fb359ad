package compile_test

import (
	"strings"
	"testing"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
)

// Each document is checked among the others of its case; want are "code path" of the last.
func TestCheckRules(t *testing.T) {
	facts := mesh.Facts{Workloads: []mesh.Workload{
		{Name: "a-v1", Namespace: "default", Role: mesh.RoleApp, Services: []string{"a"}, Labels: map[string]string{"version": "v1"}, Running: true, Meshed: true, Ports: []mesh.Port{{Number: 80}, {Number: 81}}},
		{Name: "b", Namespace: "default", Role: mesh.RoleApp, Services: []string{"b"}, Running: true, Meshed: true, Ports: []mesh.Port{{Number: 80}}},
		{Name: "gw", Namespace: "default", Role: mesh.RoleGateway, Labels: map[string]string{"istio": "ingressgateway"}, Ports: []mesh.Port{{Number: 80, Published: []string{"8080"}}}},
	}}
	vs := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: " + spec
	}
	gateway := "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: NAME}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example, a.example]}]}\n"
	for _, c := range []struct {
		name, config string
		want         []string
	}{
		{"fine", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: b}}]}, {route: [{destination: {host: b}}]}]}`), nil},
		{"a port is needed", vs(`{hosts: [a], http: [{route: [{destination: {host: a}}]}]}`), []string{"IST0112 spec.http[0].route[0].destination.port"}},
		{"a port is there", vs(`{hosts: [a], http: [{route: [{destination: {host: a, port: {number: 81}}}]}]}`), nil},
		{"behind everything", vs(`{hosts: [b], http: [{route: [{destination: {host: b}}]}, {match: [{uri: {prefix: /x}}], route: [{destination: {host: b}}]}, {route: [{destination: {host: b}}]}]}`), []string{"IST0130 spec.http[1]", "IST0130 spec.http[2]"}},
		{"behind / as a prefix", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: b}}]}, {route: [{destination: {host: b}}]}]}`), []string{"IST0130 spec.http[1]"}},
		{"behind everything of one client", vs(`{hosts: [b], http: [{match: [{sourceLabels: {app: a}}], route: [{destination: {host: b}}]}, {route: [{destination: {host: b}}]}]}`), nil},
		{"the same match", vs(`{hosts: [b], http: [{match: [{uri: {exact: /x}}], route: [{destination: {host: b}}]}, {match: [{name: other, uri: {exact: /x}}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.http[1].match[0]", "IST0130 spec.http[1]"}},
		{"one match of two", vs(`{hosts: [b], http: [{match: [{uri: {exact: /x}}], route: [{destination: {host: b}}]}, {match: [{uri: {exact: /x}}, {uri: {exact: /y}}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.http[1].match[0]"}},
		{"twice in a rule", vs(`{hosts: [b], http: [{match: [{uri: {exact: /x}}, {uri: {exact: /x}}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.http[0].match[1]"}},
		{"nobody", vs(`{hosts: [nobody], http: [{route: [{destination: {host: nobody, subset: v1}}]}]}`), []string{"IST0101 spec.hosts[0]", "IST0101 spec.http[0].route[0].destination.host"}},
		{"no subset", vs(`{hosts: [b], http: [{route: [{destination: {host: b, subset: v1}}]}]}`), []string{"IST0101 spec.http[0].route[0].destination.subset"}},
		{"no gateway", vs(`{hosts: [b], gateways: [front], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0101 spec.gateways[0]"}},
		{"a gateway for other hosts", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + vs(`{hosts: [other.example], gateways: [front], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0132 spec.gateways[0]"}},
		{"a gateway for this host", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + vs(`{hosts: [shop.example], gateways: [front], http: [{route: [{destination: {host: b}}]}]}`), nil},
		{"two gateways", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + strings.ReplaceAll(gateway, "NAME", "back"), []string{"IST0145 spec.servers[0].hosts"}},
		{"a gateway's port", strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "number: 80", "number: 90"), []string{"IST0162 spec.servers[0].port.number"}},
		{"nobody's rule", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: nobody}", []string{"IST0174 spec.host"}},
		{"an empty subset", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}", []string{"IST0173 spec.subsets[1]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			docs, err := api.DecodeYAML(api.Kinds(), "config", strings.NewReader(c.config))
			if err != nil {
				t.Fatal(err)
			}
			v := compile.View{Facts: facts, TrustDomain: "cluster.local"}
			for _, d := range docs {
				v.Intent = append(v.Intent, d.Object)
			}
			var got []string
			for _, p := range compile.New(v).Check(docs[len(docs)-1].Object) {
				got = append(got, string(p.Code)+" "+p.Path)
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}
