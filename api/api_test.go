package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/api"
)

// kinds are all that are tested here.
var kinds = slices.Concat(api.Kinds(), api.Security(), api.Config())

// problems decodes YAML and returns what is wrong, without file and object.
func problems(t *testing.T, text string) []string {
	t.Helper()
	return problemsOf(t, api.Kinds(), text)
}

func problemsOf(t *testing.T, kinds []*api.Kind, text string) []string {
	t.Helper()
	_, err := api.DecodeYAML(kinds, "f", strings.NewReader(text))
	if err == nil {
		return nil
	}
	var got []string
	for _, line := range strings.Split(err.Error(), "\n") {
		_, detail, ok := strings.Cut(line, "x: ")
		if !ok {
			t.Fatalf("error %q names no object", line)
		}
		got = append(got, detail)
	}
	return got
}

func virtualService(spec string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: " + spec
}

func route(http string) string {
	return virtualService("{hosts: [reviews], http: [{" + http + "}]}")
}

const to = "route: [{destination: {host: reviews}}]"

func TestVirtualService(t *testing.T) {
	cases := []struct {
		name, text string
		want       []string
	}{
		{"fine", route(to), nil},
		{"everything", route("name: a, match: [{name: m, uri: {regex: '/a.*'}, scheme: {exact: http}, method: {exact: GET}, authority: {prefix: r}, headers: {a: {}, b: {regex: '*'}, '@request.auth.claims.a.b': {exact: c}}, withoutHeaders: {c: {exact: d}, '@request.auth.claims[a.b][c]': {}}, queryParams: {e: {exact: f}}, ignoreUriCase: true, port: 80, sourceLabels: {app: a}, sourceNamespace: n, gateways: [front]}], route: [{destination: {host: a.b.c, subset: v1, port: {number: 1}}, weight: 0}, {destination: {host: a_b}, weight: 3}]"), nil},
		{"null is absent", route(to + ", timeout: null, match: null"), nil},
		{"unknown field", route("route: [{destination: {host: a, subst: v1}}]"), []string{`spec.http[0].route[0].destination.subst: unknown field, did you mean "subset"?`}},
		{"snake case", route(to + ", match: [{ignore_uri_case: true}]"), []string{`spec.http[0].match[0].ignore_uri_case: unknown field, did you mean "ignoreUriCase"?`}},
		{"far from any field", route(to + ", zzzzzz: 1"), []string{`spec.http[0].zzzzzz: unknown field`}},
		{"types", route("route: [{destination: {host: 1}, weight: ten}, {destination: reviews}], match: [{ignoreUriCase: 'yes', port: -1, headers: {a: b}}, {port: 1.5}]"), []string{
			`spec.http[0].match[0].headers.a: want an object, got the string "b"`,
			`spec.http[0].match[0].ignoreUriCase: want true or false, got the string "yes"`,
			`spec.http[0].match[0].port: want a number between 0 and 4294967295, got -1`,
			`spec.http[0].match[1].port: want a whole number, got the number 1.5`,
			`spec.http[0].route[0].destination.host: want a string, got the number 1: put it in quotes`,
			`spec.http[0].route[0].weight: want a whole number, got the string "ten"`,
			`spec.http[0].route[1].destination: want an object, got the string "reviews"`,
		}},
		{"list", virtualService("{hosts: reviews, http: {}}"), []string{`spec.hosts: want a list, got the string "reviews"`, `spec.http: want a list, got an object`}},
		{"two of one", route(to + ", match: [{uri: {exact: /a, prefix: /b}}]"), []string{`spec.http[0].match[0].uri: want only one of exact, prefix, regex, got exact and prefix`}},
		{"nothing", virtualService("{}"), []string{`spec.hosts: want at least one host`, `spec.http: want at least one route, here or in tls or tcp`}},
		{"no route", route("name: a"), []string{`spec.http[0].route: want at least one destination, or redirect, directResponse or delegate`}},
		{"no destination", route("route: [{weight: 1}]"), []string{`spec.http[0].route[0].destination: want a destination with a host`}},
		{"destination", route("route: [{destination: {host: '*.a', subset: 'a b', port: {number: 0}}}, {destination: {}}]"), []string{
			`spec.http[0].route[0].destination.subset: want a name of letters, digits and -, got "a b"`,
			`spec.http[0].route[0].destination.port.number: want a port between 1 and 65535, got 0`,
			`spec.http[0].route[1].destination.host: want a host name`,
			`spec.http[0].route: the weights of several destinations are all zero, want at least one above it`,
		}},
		{"weights", route("route: [{destination: {host: a}, weight: -1}]"), []string{`spec.http[0].route[0].weight: want a weight of 0 or more, got -1`}},
		{"sum", route("route: [{destination: {host: a}, weight: 2147483647}, {destination: {host: a}, weight: 2147483647}, {destination: {host: a}, weight: 2147483647}]"), []string{
			`spec.http[0].route: the weights add up to 6442450941, want at most 4294967295`,
		}},
		{"hosts", virtualService("{hosts: ['*', 'a.*', '*.b', a, a, ''], http: [{" + to + "}]}"), []string{
			`spec.hosts[0]: "*" is for gateways only, since it would take the traffic of every service: name the hosts, or a gateway in spec.gateways`,
			`spec.hosts[1]: want "*", "*.suffix" or a host name, got "a.*"`, `spec.hosts[4]: "a" is listed twice`, `spec.hosts[5]: want a host name`,
		}},
		{"star and mesh", virtualService("{hosts: ['*'], gateways: [g, mesh], http: [{" + to + "}]}"), []string{
			`spec.hosts[0]: "*" is for gateways only, since it would take the traffic of every service: name the hosts, or a gateway in spec.gateways`,
		}},
		{"gateways", virtualService("{hosts: [a], gateways: [g, ns/g, 'a/b/c', ''], http: [{" + to + ", match: [{gateways: [g]}, {gateways: [h, mesh]}]}]}"), []string{
			`spec.gateways[2]: want mesh, a Gateway's name or namespace/name, got "a/b/c"`,
			`spec.gateways[3]: want mesh, a Gateway's name or namespace/name, got ""`,
		}},
		{"matches", route(to + ", match: [{uri: {}, method: {exact: ''}, authority: {prefix: ''}, scheme: {regex: ''}, port: 70000, headers: {'a b': {}, method: {exact: GET}, c: {regex: '('}}, sourceLabels: {a: '*'}}]"), []string{
			`spec.http[0].match[0].uri: want one of exact, prefix, regex`, `spec.http[0].match[0].method.exact: want a value`,
			`spec.http[0].match[0].authority.prefix: want a value`, `spec.http[0].match[0].scheme.regex: want a regular expression`,
			`spec.http[0].match[0].headers[a b]: want a header's name`,
			"spec.http[0].match[0].headers.c.regex: want a regular expression of RE2: error parsing regexp: missing closing ): `(`",
			`spec.http[0].match[0].port: want a port between 1 and 65535, got 70000`, `spec.http[0].match[0].sourceLabels.a: want a label's value of at most 63 letters, digits, -, _ and ., the first and the last a letter or digit, got "*"`,
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, problems(t, c.text)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDestinationRule(t *testing.T) {
	rule := func(spec string) string {
		return "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: x}\nspec: " + spec
	}
	cases := []struct {
		name, text string
		want       []string
	}{
		{"fine", rule("{host: a, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}, tls: {mode: ISTIO_MUTUAL}}, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]}"), nil},
		{"enum", rule("{host: a, trafficPolicy: {loadBalancer: {simple: FASTEST}}}"), []string{
			`spec.trafficPolicy.loadBalancer.simple: want one of UNSPECIFIED, LEAST_CONN, RANDOM, PASSTHROUGH, ROUND_ROBIN, LEAST_REQUEST, got the string "FASTEST"`,
		}},
		{"not yet", rule("{host: a, trafficPolicy: {tunnel: {}, loadBalancer: {zoneAwareLbSetting: {}}, tls: {mode: ISTIO_MUTUAL, sni: a}}}"), []string{
			`spec.trafficPolicy.loadBalancer.zoneAwareLbSetting: is not supported yet`,
			`spec.trafficPolicy.tunnel: is not supported yet`,
		}},
		{"modes of TLS", rule("{host: a, trafficPolicy: {tls: {mode: SIMPLE}}, subsets: [{name: a, trafficPolicy: {tls: {mode: MUTUAL}}}]}"), []string{
			`spec.subsets[0].trafficPolicy.tls.clientCertificate: want a client's certificate in mode MUTUAL: files in clientCertificate and privateKey, or credentialName`,
		}},
		{"names", rule("{subsets: [{name: v1}, {name: v1}, {labels: {version: 1}}]}"), []string{
			`spec.subsets[2].labels.version: want a string, got the number 1: put it in quotes`,
		}},
		{"names again", rule("{subsets: [{name: v1}, {name: v1}, {labels: {version: '1'}}]}"), []string{
			`spec.host: want a host name`, `spec.subsets[1].name: want a name of its own, "v1" is that of subsets[0]`, `spec.subsets[2].name: want a name of letters, digits and -, got ""`,
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, problems(t, c.text)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGateway(t *testing.T) {
	gateway := func(spec string) string {
		return "apiVersion: networking.istio.io/v1alpha3\nkind: Gateway\nmetadata: {name: x}\nspec: " + spec
	}
	cases := []struct {
		name, text string
		want       []string
	}{
		{"fine", gateway("{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: http}, hosts: ['*', a/b.c, ./d.c, '*/e.c']}]}"), nil},
		{"nothing", gateway("{}"), []string{`spec.servers: want at least one server`}},
		{"server", gateway("{servers: [{}, {port: {number: 99999, protocol: SMTP}, hosts: ['a b', 'x.y/z.com']}]}"), []string{
			`spec.servers[0].port: want a port`, `spec.servers[0].hosts: want at least one host, or "*"`,
			`spec.servers[1].port.number: want a port between 1 and 65535, got 99999`, `spec.servers[1].port.name: want a name`, `spec.servers[1].port.protocol: want HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TCP, MONGO, MYSQL, REDIS or TLS, got "SMTP"`,
			`spec.servers[1].hosts[0]: want a host name, got "a b"`, `spec.servers[1].hosts[1]: want a namespace, *, or . before the /, got "x.y/z.com"`,
		}},
		{"not yet", gateway("{servers: [{port: {number: 443, name: a, protocol: HTTPS}, hosts: [a.com]}, {port: {number: 80, name: a, protocol: HTTP}, hosts: [a.com]}]}"), []string{
			`spec.servers[0].tls.mode: want SIMPLE, MUTUAL, OPTIONAL_MUTUAL, ISTIO_MUTUAL or PASSTHROUGH`, `spec.servers[1].port.name: want a name of its own, "a" is that of servers[0]`,
		}},
		{"fields not yet", gateway("{servers: [{port: {number: 443, name: a, protocol: HTTPS, targetPort: 8}, tls: {mode: SIMPLE}, bind: a, hosts: [a]}]}"), []string{
			`spec.servers[0].bind: is not supported yet`, `spec.servers[0].port.targetPort: is not supported yet`,
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, problems(t, c.text)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// apiVersions are those of all kinds, as a message lists them.
func apiVersions() string {
	var all []string
	for _, k := range api.Kinds() {
		if v := k.APIVersion(); !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return strings.Join(all, ", ")
}

func TestEnvelope(t *testing.T) {
	spec := "\nspec: {hosts: [a], http: [{" + to + "}]}"
	cases := []struct {
		name, text string
		want       []string
	}{
		{"status is dropped", virtualService("{hosts: [a], http: [{" + to + "}]}\nstatus: {a: b}"), nil},
		{"unknown", virtualService("{hosts: [a], http: [{" + to + "}]}\nspek: {}"), []string{`spek: unknown field`}},
		{"metadata", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, nmespace: y, labels: {a: 'b c'}, generateName: z}" + spec, []string{
			`metadata.nmespace: unknown field`, `metadata.generateName: is not supported yet`,
			`metadata.labels: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`,
		}},
		{"no spec", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}", []string{`spec: want an object`}},
		{"version", "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: x}" + spec, []string{`apiVersion: VirtualService has no version "v2", want one of v1, v1beta1, v1alpha3`}},
		{"kind", "apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {name: x}" + spec, []string{`kind: "EnvoyFilter" of networking.istio.io is not supported yet, want one of DestinationRule, Gateway, ServiceEntry, Sidecar, VirtualService, WorkloadEntry`}},
		{"group", "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: x}" + spec, []string{`apiVersion: group telemetry.istio.io is not supported yet, want one of ` + apiVersions()}},
		{"core", "apiVersion: v1\nkind: Service\nmetadata: {name: x}" + spec, []string{`kind: "Service" of v1 is not supported yet, want one of Secret`}},
		{"secret", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: kubernetes.io/tls\ndata: {tls.crt: '!', a/b: YQ==}\nstringData: {x: 1}\nimmutable: true\nspek: {}", []string{
			"spek: unknown field", "immutable: is not supported yet", "data[a/b]: want a key of letters, digits, -, _ and .",
			"data[tls.crt]: want base64: stringData takes text as it is", "stringData.x: want a string",
		}},
		{"secret of tls", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: kubernetes.io/tls\nstringData: {tls.key: k}", []string{"data[tls.crt]: want it in a secret of type kubernetes.io/tls"}},
		{"secret's type", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: kubernetes.io/dockercfg", []string{`type: want kubernetes.io/tls or Opaque, got "kubernetes.io/dockercfg"`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, problems(t, c.text)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeYAML(t *testing.T) {
	one := virtualService("{hosts: [a], http: [{" + to + "}]}")
	indent := func(s string) string { return strings.ReplaceAll(s, "\n", "\n  ") }
	cases := []struct {
		name, text string
		objects    int
		err        string // "" for none
	}{
		{"two and empty ones", "---\n# nothing\n---\n" + one + "\n---\n" + one + "\n---\n", 2, ""},
		{"list", "apiVersion: v1\nkind: List\nitems:\n- " + indent(one) + "\n- " + indent(one), 2, ""},
		{"JSON", `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"x"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`, 1, ""},
		{"anchors", strings.Replace(one, "hosts: [a]", "hosts: &h [a]", 1) + "\n---\n" + one, 2, ""},
		{"yes is a string", strings.Replace(one, "hosts: [a]", "hosts: [on, yes, no]", 1), 1, ""},
		{"line of a field", "---\n" + virtualService("\n  hosts:\n  - a\n  http:\n  - tmeout: 1s\n    "+to), 0, "f:9: VirtualService x: spec.http[0].tmeout: unknown field, did you mean \"timeout\"?"},
		{"line of a list's item", "apiVersion: v1\nkind: List\nitems:\n- " + indent(strings.Replace(one, "hosts", "hots", 1)), 0, `f:7: VirtualService x: spec.hots: unknown field, did you mean "hosts"?`},
		{"one is wrong", one + "\n---\n" + strings.Replace(one, "hosts", "hots", 1), 1, `f:9: VirtualService x: spec.hots: unknown field, did you mean "hosts"?`},
		{"syntax", one + "\n---\na: [", 1, "f: document 1: yaml: line 6: did not find expected node content"},
		{"duplicate key", one + "\nkind: Gateway", 0, `f:1: document 0: yaml: unmarshal errors:` + "\n" + `  line 5: mapping key "kind" already defined at line 2`},
		{"no mapping", "hello", 0, "f:1: document 0: want an object"},
		{"list of strings", "apiVersion: v1\nkind: List\nitems: [a]", 0, `f:1: document 0: items[0]: want an object, got the string "a"`},
		{"key is no string", "true: a", 0, "f:1: document 0: a key is no string: put it in quotes"},
		{"no number", "a: .inf", 0, "f:1: document 0: +Inf is no number: put it in quotes"},
		{"deep", "a: " + strings.Repeat("[", 80) + strings.Repeat("]", 80), 0, "f:1: document 0: nested deeper than 64 levels"},
		{"large", strings.Repeat("#", 2<<20), 0, "f: larger than 1048576 bytes, want it in several files"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			docs, err := api.DecodeYAML(api.Kinds(), "f", strings.NewReader(c.text))
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(c.err, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if len(docs) != c.objects {
				t.Errorf("got %d objects, want %d", len(docs), c.objects)
			}
			for _, d := range docs {
				if d.Object.Meta.Namespace != "default" || d.File != "f" || d.Line == 0 {
					t.Errorf("document is %s:%d %s, want a place and the default namespace", d.File, d.Line, d.Object)
				}
			}
		})
	}
}

// A hundred thousand aliases of aliases are refused, not followed.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := range 9 {
		prev, next := string(rune('0'+i)), string(rune('1'+i))
		b.WriteString("a" + next + ": &a" + next + " [" + strings.Repeat("*a"+prev+", ", 9) + "x]\n")
	}
	if _, err := api.DecodeYAML(api.Kinds(), "f", strings.NewReader(b.String())); err == nil || !strings.Contains(err.Error(), "excessive aliasing") {
		t.Errorf("error is %v, want a refusal", err)
	}
}

func FuzzDecodeYAML(f *testing.F) {
	f.Add(virtualService("{hosts: [a], http: [{" + to + "}]}"))
	f.Add("apiVersion: v1\nkind: List\nitems:\n- &a {kind: Gateway}\n- *a")
	f.Add("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a, subsets: [{name: v1, labels: {a: b}}]}")
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := api.DecodeYAML(api.Kinds(), "f", strings.NewReader(text))
		for _, d := range docs {
			if d.Object.Spec == nil || d.Object.Meta.Name == "" {
				t.Errorf("an object without name or spec was accepted: %+v", d.Object)
			}
			for _, c := range d.Object.Kind.Columns {
				_ = c.Cell(d.Object) // does not panic
			}
		}
		if err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Errorf("error %q does not name the file", err)
		}
	})
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"x"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`))
	f.Add([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":null,"spec":{"servers":[null]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := api.DecodeJSON(api.Kinds(), raw)
		if (o == nil) == (err == nil) {
			t.Errorf("object %v and error %v", o, err)
		}
	})
}
