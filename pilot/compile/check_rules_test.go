package compile_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/testcert"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
)

// Each document is checked among the others of its case; want are "code path" of the last.
func TestCheckRules(t *testing.T) {
	facts := mesh.Facts{Workloads: []mesh.Workload{
		{Name: "a-v1", Namespace: "default", Role: mesh.RoleApp, Services: []string{"a"}, Labels: map[string]string{"version": "v1"}, Running: true, Meshed: true, Ports: []mesh.Port{{Number: 80}, {Number: 81}}},
		{Name: "b", Namespace: "default", Role: mesh.RoleApp, Services: []string{"b"}, Running: true, Meshed: true, Ports: []mesh.Port{{Number: 80}}},
		{Name: "gw", Namespace: "default", Role: mesh.RoleGateway, Labels: map[string]string{"istio": "ingressgateway", "app": "edge", "zone": "dmz"}, Ports: []mesh.Port{{Number: 80, Published: []string{"8080"}}}},
	}}
	vs := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: " + spec
	}
	entry := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec: " + spec
	}
	sidecar := func(name, spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: " + name + "}\nspec: " + spec
	}
	gateway := "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: NAME}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example, a.example]}]}\n"
	rule := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: " + spec
	}
	_, chain, key := testcert.New(t, "a.example")
	_, oldChain, oldKey := testcert.NewCA(t, "nobody's").IssueUntil(t, time.Now().Add(-time.Minute), "a.example")
	secret := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {cert: %q, key: %q}\n---\n", chain, key)
	secure := func(name, host string) string {
		return "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: " + name + "}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: s}, hosts: [" + host + "]}]}\n"
	}
	subsets := rule(`{host: a, subsets: [{name: v1, labels: {version: v1}}]}`) + "\n---\n" +
		strings.ReplaceAll(vs(`{hosts: [a], http: [{route: [{destination: {host: a, subset: v1, port: {number: 80}}}]}]}`), "name: x", "name: w") + "\n---\n"
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
		{"behind a shorter prefix", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: b}}]}, {match: [{uri: {prefix: /xy}}, {uri: {exact: /x/y}}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.http[1].match[0]", "IST0131 spec.http[1].match[1]"}},
		{"behind a longer prefix", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /xy}}], route: [{destination: {host: b}}]}, {match: [{uri: {prefix: /x}}], route: [{destination: {host: b}}]}]}`), nil},
		{"behind a shorter prefix of another method", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /x}, method: {exact: GET}}], route: [{destination: {host: b}}]}, {match: [{uri: {prefix: /xy}}], route: [{destination: {host: b}}]}]}`), nil},
		{"behind a shorter prefix of any method", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: b}}]}, {match: [{uri: {prefix: /xy}, method: {exact: GET}, headers: {a: {exact: b}}}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.http[1].match[0]"}},
		{"beside a shorter prefix", vs(`{hosts: [b], http: [{match: [{uri: {prefix: /x}}, {uri: {prefix: /xy}}, {uri: {exact: /xz}}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.http[0].match[1]"}},
		{"tcp behind everything", vs(`{hosts: [b], tcp: [{route: [{destination: {host: b}}]}, {match: [{port: 80}], route: [{destination: {host: b}}]}]}`), []string{"IST0130 spec.tcp[1]"}},
		{"tcp twice", vs(`{hosts: [b], tcp: [{match: [{port: 80}], route: [{destination: {host: b}}]}, {match: [{port: 80}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.tcp[1].match[0]", "IST0130 spec.tcp[1]"}},
		{"tcp by port", vs(`{hosts: [b], tcp: [{match: [{port: 80}], route: [{destination: {host: b}}]}, {route: [{destination: {host: b}}]}]}`), nil},
		{"tls twice", vs(`{hosts: [b], tls: [{match: [{sniHosts: [b]}], route: [{destination: {host: b}}]}, {match: [{sniHosts: [b]}], route: [{destination: {host: b}}]}]}`), []string{"IST0131 spec.tls[1].match[0]", "IST0130 spec.tls[1]"}},
		{"tls that nobody vouches for", rule(`{host: b, trafficPolicy: {tls: {mode: SIMPLE}}}`), []string{"IST0128 spec.trafficPolicy.tls"}},
		{"tls of a port and of a subset", rule(`{host: b, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}, subsets: [{name: all, trafficPolicy: {tls: {mode: SIMPLE}}}]}`), []string{"IST0129 spec.trafficPolicy.portLevelSettings[0].tls", "IST0128 spec.subsets[0].trafficPolicy.tls"}},
		{"tls that is vouched for, or is not to be", rule(`{host: b, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca.pem}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}, {port: {number: 81}, tls: {mode: ISTIO_MUTUAL}}]}}`), nil},
		{"tcp without addresses", entry(`{hosts: [db.example], resolution: NONE, ports: [{number: 5432, name: tcp, protocol: TCP}]}`), []string{"IST0134 spec.addresses"}},
		{"tcp with addresses", entry(`{hosts: [db.example], addresses: [192.0.2.0/24], resolution: NONE, ports: [{number: 5432, name: tcp, protocol: TCP}]}`), nil},
		{"tcp with an address of its own", entry(`{hosts: [db.example], resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 5432, name: tcp, protocol: TCP}]}`), nil},
		{"one certificate at two gateways", secret + secure("front", "a.example") + "---\n" + secure("back", "b.example"), []string{"IST0138 spec.servers[0].tls.credentialName"}},
		{"one certificate at a gateway for more proxies", secret + secure("front", "a.example") + "---\n" + strings.Replace(secure("back", "b.example"), "{istio: ingressgateway}", "{istio: ingressgateway, zone: dmz}", 1), nil},
		{"one certificate at a gateway for fewer proxies", secret + strings.Replace(secure("front", "a.example"), "{istio: ingressgateway}", "{istio: ingressgateway, zone: dmz}", 1) + "---\n" + secure("back", "b.example"), []string{"IST0138 spec.servers[0].tls.credentialName"}},
		{"a certificate that has expired", fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {cert: %q, key: %q}\n---\n", oldChain, oldKey) + secure("front", "a.example"), []string{"IST0161 spec.servers[0].tls.credentialName"}},
		{"one certificate at one gateway", secret + secure("front", "a.example"), nil},
		{"nobody", vs(`{hosts: [nobody], http: [{route: [{destination: {host: nobody, subset: v1}}]}]}`), []string{"IST0133 spec.hosts[0]", "IST0101 spec.http[0].route[0].destination.host"}},
		{"no subset", vs(`{hosts: [b], http: [{route: [{destination: {host: b, subset: v1}}]}]}`), []string{"IST0101 spec.http[0].route[0].destination.subset"}},
		{"a match on a gateway that is not bound", vs(`{hosts: [b], http: [{match: [{gateways: [front]}, {gateways: [mesh]}], route: [{destination: {host: b}}]}]}`), []string{"IST0133 spec.http[0].match[0].gateways[0]"}},
		{"headers that are none", vs(`{hosts: [b], http: [{match: [{headers: {uri: {exact: /}, x: {exact: y}}, withoutHeaders: {Method: {exact: GET}}}], route: [{destination: {host: b}}]}]}`), []string{"IST0133 spec.http[0].match[0].headers.uri", "IST0133 spec.http[0].match[0].withoutHeaders.Method"}},
		{"a redirect that sends nothing on", vs(`{hosts: [b], http: [{redirect: {uri: /}, timeout: 1s, retries: {attempts: 1}, mirror: {host: b}, headers: {request: {set: {a: b}}, response: {set: {c: d}}}}]}`), []string{
			"IST0133 spec.http[0].timeout", "IST0133 spec.http[0].retries", "IST0133 spec.http[0].mirror", "IST0133 spec.http[0].headers.request",
		}},
		{"faults and a mirror that are none", vs(`{hosts: [b], http: [{fault: {delay: {percentage: {value: 9}}, abort: {}}, mirrorPercentage: {value: 1}, route: [{destination: {host: b}}]}]}`), []string{
			"IST0133 spec.http[0].mirrorPercentage", "IST0133 spec.http[0].fault.delay", "IST0133 spec.http[0].fault.abort",
		}},
		{"an address for a server's name", vs(`{hosts: [b], tls: [{match: [{sniHosts: [192.0.2.1]}], route: [{destination: {host: b}}]}]}`), []string{"IST0133 spec.tls[0].match[0].sniHosts[0]"}},
		{"connections that nothing comes of", rule(`{host: b, trafficPolicy: {connectionPool: {http: {maxConcurrentStreams: 5}}, portLevelSettings: [{port: {number: 80}, connectionPool: {http: {http2KeepAlive: {interval: 15s, timeout: 5s}}}}]}}`), []string{
			"IST0133 spec.trafficPolicy.connectionPool.http.maxConcurrentStreams", "IST0133 spec.trafficPolicy.portLevelSettings[0].connectionPool.http.http2KeepAlive",
		}},
		{"two sources of a certificate", secret + strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "HTTP}", "HTTPS}, tls: {mode: SIMPLE, credentialName: s, privateKey: /k, httpsRedirect: true}"), []string{
			"IST0133 spec.servers[0].tls.httpsRedirect", "IST0133 spec.servers[0].tls.privateKey",
		}},
		{"TLS that is not asked for", strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "HTTP}", "TLS}, tls: {mode: PASSTHROUGH, credentialName: s, caCertificates: /ca, cipherSuites: [RC4, AES128-SHA, AES128-SHA], caCrl: /crl}"), []string{
			"IST0133 spec.servers[0].tls.caCertificates", "IST0133 spec.servers[0].tls.caCrl", "IST0133 spec.servers[0].tls.cipherSuites[0]", "IST0133 spec.servers[0].tls.cipherSuites[2]", "IST0133 spec.servers[0].tls.credentialName",
		}},
		{"a claim that sidecars do not know", vs(`{hosts: [b], http: [{match: [{headers: {"@request.auth.claims.a": {}}}, {withoutHeaders: {"@request.auth.claims.b": {}}}], route: [{destination: {host: b}}]}]}`), []string{
			"IST0133 spec.http[0].match[0].headers[@request.auth.claims.a]", "IST0133 spec.http[0].match[1].withoutHeaders[@request.auth.claims.b]",
		}},
		{"a claim at a gateway", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + vs(`{hosts: [shop.example], gateways: [front, mesh], http: [{match: [{gateways: [front], headers: {"@request.auth.claims.a": {}}}], route: [{destination: {host: b}}]}]}`), nil},
		{"no gateway", vs(`{hosts: [b], gateways: [front], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0101 spec.gateways[0]", "IST0132 spec.gateways[0]"}},
		{"a gateway for other hosts", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + vs(`{hosts: [other.example], gateways: [front], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0132 spec.gateways[0]"}},
		{"a gateway by its name in Istio 1.0", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + vs(`{hosts: [shop.example], gateways: [front.default.svc.cluster.local], http: [{route: [{destination: {host: b}}]}]}`), nil},
		{"a gateway for this host", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + vs(`{hosts: [shop.example], gateways: [front], http: [{route: [{destination: {host: b}}]}]}`), nil},
		{"two gateways", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + strings.ReplaceAll(gateway, "NAME", "back"), []string{"IST0145 spec.servers[0].hosts"}},
		{"two gateways that one proxy is of", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "back"), "istio: ingressgateway", "app: edge"), []string{"IST0145 spec.servers[0].hosts"}},
		{"two gateways of different proxies", strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "istio: ingressgateway", "app: front") + "---\n" + strings.ReplaceAll(gateway, "NAME", "back"), nil},
		{"an older one for the host", strings.ReplaceAll(vs(`{hosts: [b], http: [{route: [{destination: {host: b}}]}]}`), "name: x", "name: w") + "\n---\n" + vs(`{hosts: [b.default], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0109 spec.hosts[0]"}},
		{"a younger one for the host", strings.ReplaceAll(vs(`{hosts: [b], http: [{route: [{destination: {host: b}}]}]}`), "name: x", "name: y") + "\n---\n" + vs(`{hosts: [b.default], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0109 spec.hosts[0]"}},
		{"one for the host that others see", strings.ReplaceAll(vs(`{hosts: [b], exportTo: [other, more], http: [{route: [{destination: {host: b}}]}]}`), "name: x", "name: w") + "\n---\n" + vs(`{hosts: [b], exportTo: ["."], http: [{route: [{destination: {host: b}}]}]}`), nil},
		{"one for the host that some see", strings.ReplaceAll(vs(`{hosts: [b], exportTo: [other], http: [{route: [{destination: {host: b}}]}]}`), "name: x", "name: w") + "\n---\n" + vs(`{hosts: [b], exportTo: ["*"], http: [{route: [{destination: {host: b}}]}]}`), []string{"IST0109 spec.hosts[0]"}},
		{"a subset that a gateway's requests do not meet", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + subsets + vs(`{hosts: [a.example], gateways: [front], http: [{route: [{destination: {host: a, port: {number: 80}}}]}]}`), []string{"IST0140 spec.http[0].route[0].destination"}},
		{"a subset of the gateway's own", strings.ReplaceAll(gateway, "NAME", "front") + "---\n" + subsets + vs(`{hosts: [a.example], gateways: [front], http: [{route: [{destination: {host: a, subset: v1, port: {number: 80}}}]}]}`), nil},
		{"a subset that the mesh meets", subsets + vs(`{hosts: [c.example], http: [{route: [{destination: {host: a, port: {number: 80}}}]}]}`), nil},
		{"a gateway's port", strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "number: 80", "number: 90"), []string{"IST0162 spec.servers[0].port.number"}},
		{"a gateway without its secret", strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "HTTP}", "HTTPS}, tls: {mode: SIMPLE, credentialName: none}"), []string{"IST0101 spec.servers[0].tls.credentialName"}},
		{"a bad secret", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {cert: x, key: y}\n---\n" + strings.ReplaceAll(strings.ReplaceAll(gateway, "NAME", "front"), "HTTP}", "HTTPS}, tls: {mode: SIMPLE, credentialName: s}"), []string{"IST0161 spec.servers[0].tls.credentialName"}},
		{"a secret of nothing", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: x}", []string{"IST0161 data"}},
		{"a secret without a key", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {cert: x}", []string{"IST0161 data"}},
		{"a sidecar's secret", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, credentialName: s}}]}}", []string{
			"IST0129 spec.trafficPolicy.portLevelSettings[0].tls.credentialName", "IST0101 spec.trafficPolicy.portLevelSettings[0].tls.credentialName",
		}},
		{"nobody's rule", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: nobody}", []string{"IST0174 spec.host"}},
		{"an entry that is resolved", entry(`{hosts: [pay.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}`), nil},
		{"an entry", entry(`{hosts: [pay.example], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}`), nil},
		{"an entry for a service", entry(`{hosts: [b.default.svc.cluster.local], resolution: NONE, ports: [{number: 80, name: http, protocol: HTTP}]}`), []string{"IST0133 spec.hosts[0]"}},
		{"endpoints of other networks", entry(`{hosts: [pay.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{network: a}, {network: b, address: 192.0.2.1}]}`), []string{"IST0133 spec.endpoints[0].address", "IST0133 spec.endpoints[1].network"}},
		{"a workload of another network", "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x}\nspec: {network: a}\n---\n" + entry(`{hosts: [pay.example], resolution: DNS, workloadSelector: {}, ports: [{number: 80, name: http, protocol: HTTP}]}`) + "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: y}\nspec: {network: a}", []string{"IST0133 spec.address"}},
		{"an entry without ports", entry(`{hosts: [pay.example]}`), []string{"IST0133 spec.ports"}},
		{"an entry that uses less than it says", entry(`{hosts: [pay.example], workloadSelector: {}, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 81}]}`), []string{"IST0133 spec.ports[0].targetPort", "IST0133 spec.workloadSelector"}},
		{"an entry without endpoints", entry(`{hosts: ["*.pay.example"], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]}`), []string{"IST0133 spec.endpoints"}},
		{"an entry for every workload", entry(`{hosts: [pay.example], resolution: STATIC, workloadSelector: {}, ports: [{number: 80, name: http, protocol: HTTP}]}`), []string{"IST0133 spec.workloadSelector"}},
		{"a sidecar for everybody that knows nobody", sidecar("x", `{workloadSelector: {}, egress: [{hosts: ["~/*"]}]}`), []string{"IST0133 spec.workloadSelector"}},
		{"a sidecar", sidecar("x", `{workloadSelector: {labels: {version: v1}}, egress: [{hosts: ["./b", "*/*"]}]}`), nil},
		{"a sidecar for nobody", sidecar("x", `{workloadSelector: {labels: {version: v9}}, egress: [{hosts: ["*/*"]}]}`), []string{"IST0101 spec.workloadSelector"}},
		{"a sidecar that knows nobody", sidecar("x", `{egress: [{hosts: ["./b", "./nobody", "other/a"]}]}`), []string{"IST0101 spec.egress[0].hosts[1]", "IST0101 spec.egress[0].hosts[2]"}},
		{"two sidecars for all", sidecar("w", `{outboundTrafficPolicy: {mode: ALLOW_ANY}}`) + "\n---\n" + sidecar("x", `{egress: [{hosts: ["*/*"]}]}`), []string{"IST0111 spec"}},
		{"two sidecars for one", sidecar("w", `{workloadSelector: {labels: {version: v1}}, egress: [{hosts: ["*/*"]}]}`) + "\n---\n" + sidecar("x", `{workloadSelector: {labels: {version: v1}}, egress: [{hosts: ["*/*"]}]}`), []string{"IST0110 spec.workloadSelector"}},
		{"one sidecar for all and one for some", sidecar("w", `{egress: [{hosts: ["*/*"]}]}`) + "\n---\n" + sidecar("x", `{workloadSelector: {labels: {version: v1}}, egress: [{hosts: ["*/*"]}]}`), nil},
		{"what an entry does not use", entry(`{hosts: [a.example], resolution: NONE, workloadSelector: {}, ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]}`), []string{
			"IST0133 spec.ports[0].targetPort", "IST0133 spec.workloadSelector",
		}},
		{"an entry without endpoints", entry(`{hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]}`), []string{"IST0133 spec.endpoints"}},
		{"an abort of nothing", vs(`{hosts: [b], http: [{fault: {abort: {percentage: {value: 100}}}, route: [{destination: {host: b}}]}]}`), []string{"IST0133 spec.http[0].fault.abort"}},
		{"conditions that are never met", vs(`{hosts: [b], http: [{retries: {attempts: 1, retryOn: "5xx,retriable-headers"}, route: [{destination: {host: b}}]}]}`), []string{"IST0133 spec.http[0].retries.retryOn"}},
		{"figures of a match", vs(`{hosts: [b], http: [{match: [{statPrefix: x, uri: {prefix: /x}}], route: [{destination: {host: b}}]}]}`), []string{"IST0133 spec.http[0].match[0].statPrefix"}},
		{"a wildcard that an entry has", entry(`{hosts: ["*.example"], resolution: NONE, ports: [{number: 80, name: http, protocol: HTTP}]}`) + "\n---\n" + vs(`{hosts: [b], http: [{route: [{destination: {host: "*.example"}}]}]}`), nil},
		{"a wildcard that nothing has", vs(`{hosts: [b], http: [{route: [{destination: {host: "*.example"}}]}]}`), []string{"IST0101 spec.http[0].route[0].destination.host"}},
		{"failover of what never fails", rule(`{host: b, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}, subsets: [{name: all, trafficPolicy: {outlierDetection: {interval: 1s}, loadBalancer: {localityLbSetting: {failoverPriority: [zone]}}}}]}`), []string{
			"IST0133 spec.trafficPolicy.loadBalancer.localityLbSetting",
		}},
		{"a rule for some", rule(`{host: b, workloadSelector: {matchLabels: {version: v1}}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}`), nil},
		{"a rule for nobody", rule(`{host: b, workloadSelector: {matchLabels: {version: v9}}}`), []string{"IST0127 spec.workloadSelector"}},
		{"a rule for all by a selector", rule(`{host: b, workloadSelector: {}}`), []string{"IST0133 spec.workloadSelector"}},
		{"a subset of some", rule(`{host: b, workloadSelector: {matchLabels: {version: v1}}, subsets: [{name: all}]}`) + "\n---\n" + vs(`{hosts: [b], http: [{route: [{destination: {host: b, subset: all}}]}]}`), nil},
		{"a sidecar for all by a selector", sidecar("x", `{workloadSelector: {}, egress: [{hosts: ["*/*"]}]}`), []string{"IST0133 spec.workloadSelector"}},
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
