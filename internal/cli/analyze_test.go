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
		{name: "an adapter that is not built", config: "apiVersion: config.istio.io/v1alpha2\nkind: opa\nmetadata: {name: a}\nspec: {}", code: 1, want: []string{"Error IST0106 opa/default/a kind"}},
		{name: "an unknown kind", config: "apiVersion: networking.istio.io/v1\nkind: Virtualservice\nmetadata: {name: a}\nspec: {}", code: 1, want: []string{"Error IST0106 virtualservice/default/a kind"}},
		{name: "two Services for one Deployment", config: `
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: shop}, spec: {template: {metadata: {labels: {app: shop}}}}}
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}]}}
- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {selector: {app: shop}, ports: [{name: tcp, port: 80, targetPort: 8081}, {name: http, port: 81, targetPort: 8080}]}}
`, want: []string{"Warning IST0116 deployment/default/shop metadata.labels", "Warning IST0137 deployment/default/shop metadata.labels"}},
		{name: "two Services that agree", config: `
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: shop}, spec: {template: {metadata: {labels: {app: shop}}}}}
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}]}}
- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {selector: {app: shop}, ports: [{name: http-b, port: 80, targetPort: 8080}]}}
- {apiVersion: v1, kind: Service, metadata: {name: others}, spec: {selector: {app: other}, ports: [{name: tcp, port: 81, targetPort: 8080}]}}
`},
		{name: "a Deployment of none", config: `
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: shop}, spec: {template: {metadata: {labels: {app: shop}, annotations: {sidecar.istio.io/inject: "false"}}, spec: {securityContext: {runAsUser: 1337}}}}}
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {app: shop}, ports: [{name: http, port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {selector: {app: shop}, ports: [{name: tcp, port: 80}]}}
`},
		{name: "the proxy's user", config: `
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: all}, spec: {template: {spec: {securityContext: {runAsUser: 1337}, containers: [{name: app, securityContext: {runAsUser: 1000}}]}}}}
- {apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {containers: [{name: app}, {name: log, securityContext: {runAsUser: 1337}}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: proxy}, spec: {containers: [{name: app}, {name: istio-proxy, securityContext: {runAsUser: 1337}}]}}
`, want: []string{"Warning IST0144 deployment/default/all spec.template.spec.securityContext.runAsUser", "Warning IST0144 pod/default/one spec.containers[1].securityContext.runAsUser"}},
		{name: "ports without a protocol", config: `
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: inside}, spec: {ports: [{name: tcp, port: 80}, {name: dns, port: 53, protocol: UDP}, {port: 81, appProtocol: kubernetes.io/h2c}, {port: 82}]}}
- {apiVersion: v1, kind: Service, metadata: {name: outside}, spec: {type: ExternalName, externalName: shop.example, ports: [{name: tcp, port: 80}, {name: shop, port: 81}, {name: https, port: 443}]}}
- {apiVersion: v1, kind: Service, metadata: {name: dns, namespace: kube-system}, spec: {ports: [{port: 80}]}}
`, want: []string{"Info IST0118 service/default/inside spec.ports[3].name", "Warning IST0150 service/default/outside spec.ports[0].name", "Warning IST0150 service/default/outside spec.ports[1].name"}},
		{name: "the gateway of the installation", config: rule("front", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example]}, {port: {number: 8080, name: http-2, protocol: HTTP}, hosts: [a.example]}]}`), want: []string{
			"Warning IST0162 gateway/default/front spec.servers[1].port.number",
		}},
		{name: "no such gateway", config: rule("front", "Gateway", `{selector: {istio: egressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example]}]}`), code: 1, want: []string{"Error IST0101 gateway/default/front spec.selector"}},
		{name: "a Pod that no Service selects", config: "{apiVersion: v1, kind: Pod, metadata: {name: job, labels: {app: job}}}\n---\n" + rule("job", "Sidecar", `{workloadSelector: {labels: {app: job}}, egress: [{hosts: ["*/*"]}]}`)},
		{name: "what is refused is there for others", config: shop + rule("shop", "Gateway", `{selector: {istio: ingressgateway}, servers: []}`) + rule("out", "ServiceEntry", `{hosts: [pay.example]}`) +
			rule("shop", "VirtualService", `{hosts: [shop.example], gateways: [shop], http: [{route: [{destination: {host: pay.example}}]}]}`), code: 1, want: []string{
			"Error IST0106 gateway/default/shop spec.servers", "Warning IST0133 serviceentry/default/out spec.ports", "Warning IST0132 virtualservice/default/shop spec.gateways[0]", "Info IST0118 service/default/raw spec.ports[0].name",
		}},
		{name: "an expression that is none", config: rule("shop", "VirtualService", `{hosts: [shop], http: [{match: [{uri: {regex: "["}}], rewrite: {uriRegexRewrite: {match: "(", rewrite: x}}, route: [{destination: {host: shop}}]}]}`), args: "--schema-only", code: 1, want: []string{
			"Error IST0122 virtualservice/default/shop spec.http[0].match[0].uri.regex", "Error IST0122 virtualservice/default/shop spec.http[0].rewrite.uriRegexRewrite.match",
		}},
		{name: "a policy for nobody", config: shop + "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {selector: {matchLabels: {app: nobody}}}\n", want: []string{
			"Warning IST0127 authorizationpolicy/default/a spec.selector.matchLabels", "Info IST0118 service/default/raw spec.ports[0].name",
		}},
		{name: "in a namespace", config: rule("shop", "VirtualService", `{hosts: [shop], http: [{rute: []}]}`), args: "--schema-only -n web", code: 1, want: []string{"Error IST0106 virtualservice/web/shop spec.http[0].rute"}},
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
