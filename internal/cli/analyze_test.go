package cli

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const shop = `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: shop}, spec: {selector: {app: shop}, ports: [{name: http, port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: raw}, spec: {ports: [{name: x, port: 80}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: shop-1, labels: {app: shop, version: v1}}}
- {apiVersion: v1, kind: Service, metadata: {name: ingress}, spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 80}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: ingress, labels: {istio: ingressgateway}}}
- apiVersion: networking.istio.io/v1
  kind: Gateway
  metadata: {name: front}
  spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
`

func TestAnalyzeFiles(t *testing.T) {
	rule := func(name, kind, spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec: " + spec + "\n---\n"
	}
	for _, c := range []struct {
		name, config string
		args         string
		code         int
		want         []string // severity, code, resource and path of each
	}{
		{name: "fine but for a port's name", config: shop, want: []string{"Info IST0118 service/default/raw spec.ports[0].name"}},
		{name: "the schema alone", config: shop, args: "--schema-only"},
		{name: "bound to the gateway", config: shop + rule("shop", "VirtualService", `{hosts: [shop.example], gateways: [front], http: [{route: [{destination: {host: shop}}]}]}`), want: []string{"Info IST0118 service/default/raw spec.ports[0].name"}},
		{name: "an unknown host and an unused rule", config: shop + rule("shop", "VirtualService", `{hosts: [shop], http: [{route: [{destination: {host: shp}}]}, {route: [{destination: {host: shop}}]}]}`), code: 1, want: []string{
			"Error IST0101 virtualservice/default/shop spec.http[0].route[0].destination.host", "Warning IST0130 virtualservice/default/shop spec.http[1]", "Info IST0118 service/default/raw spec.ports[0].name",
		}},
		{name: "an unknown host is no matter of the schema", config: shop + rule("shop", "VirtualService", `{hosts: [shop], http: [{route: [{destination: {host: shp}}]}]}`), args: "--schema-only"},
		{name: "the schema", config: rule("shop", "VirtualService", `{hosts: [shop], http: [{rute: [], route: []}]}`) + rule("x", "Gateway", `{servers: []}`), args: "--schema-only", code: 1, want: []string{
			"Error IST0106 virtualservice/default/shop spec.http[0].rute", "Error IST0106 gateway/default/x spec.servers",
		}},
		{name: "an unknown kind", config: "apiVersion: networking.istio.io/v1\nkind: Virtualservice\nmetadata: {name: a}\nspec: {}", code: 1, want: []string{"Error IST0106 virtualservice/default/a kind"}},
		{name: "no YAML", config: "a: [", code: 1, want: []string{"Error IST0106 stdin: document 0 "}},
		{name: "nothing", config: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, talk strings.Builder
			env := &Env{In: strings.NewReader(c.config), Out: &out, Err: &talk, Getenv: func(string) string { return "" }}
			code := Run(t.Context(), env, append([]string{"analyze", "-f", "-", "-o", "json"}, strings.Fields(c.args)...))
			var got []message
			if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
				t.Fatalf("%v\n%s%s", err, out.String(), talk.String())
			}
			var lines []string
			for _, m := range got {
				lines = append(lines, strings.Join([]string{string(m.Severity), string(m.Code), m.Resource, m.Path}, " "))
				if m.Message == "" {
					t.Errorf("%s says nothing", m.Resource)
				}
			}
			if code != c.code || !reflect.DeepEqual(lines, c.want) {
				t.Errorf("exit %d, found\n%s\nwant %d\n%s", code, strings.Join(lines, "\n"), c.code, strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestAnalyzeUnreadable(t *testing.T) {
	var out, talk strings.Builder
	env := &Env{Out: &out, Err: &talk, Getenv: func(string) string { return "" }}
	if code := Run(t.Context(), env, []string{"analyze", "-f", "nothing.yaml"}); code != 1 || !strings.Contains(talk.String(), "nothing.yaml") {
		t.Errorf("exit %d: %s", code, talk.String())
	}
}
