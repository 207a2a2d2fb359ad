package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func TestListenerRows(t *testing.T) {
	_, rows := listenerRows(&snapshot.Snapshot{Gateways: []snapshot.GatewayServer{{
		Port: 443, Protocol: mesh.ProtocolTLS,
		TLSRoutes:  []snapshot.TLSRoute{{ServerNames: []string{"own.example"}}},
		TLSServers: []snapshot.TLSServer{{ServerNames: []string{"a.example"}, Protocol: mesh.ProtocolHTTP, TLS: snapshot.EdgeTLS{Mode: snapshot.ServerMutual}, Resource: "gateway/default/front spec.servers[1]"}},
	}}})
	want := [][]string{
		{"443", "tls", "gateway: 0 virtual hosts, 1 routes of TLS, 0 of TCP"},
		{"443", "http", "gateway: a.example, TLS MUTUAL ends here (gateway/default/front spec.servers[1])"},
	}
	if diff := cmp.Diff(want, rows[:2]); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestSecretRows(t *testing.T) {
	var s proxySecrets
	err := json.Unmarshal([]byte(`{"identity":"spiffe://a/b","serial":"1f","notAfter":"2030-01-02T03:04:05Z","servers":[
		{"server":"x","hosts":["a.example"],"mode":"SIMPLE","open":true,"from":["secret default/a"],"certificates":[{"serial":"2f","notAfter":"2031-01-02T03:04:05Z"}]},
		{"server":"y","hosts":["b.example"],"mode":"SIMPLE","open":false,"from":["/c"],"error":"there is none"}]}`), &s)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"spiffe://a/b", "citadel", "valid", "1f", "2030-01-02T03:04:05Z", ""},
		{"a.example", "secret default/a", "open", "2f", "2031-01-02T03:04:05Z", ""},
		{"b.example", "/c", "closed", "", "", "there is none"},
	}
	if diff := cmp.Diff(want, s.rows()); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// A bug report has the names of what Secrets hold and no value.
func TestReportHasNoSecrets(t *testing.T) {
	var list map[string]any
	if err := json.Unmarshal([]byte(`{"items":[{"metadata":{"name":"s"},"data":{"tls.key":"c2VjcmV0","custom":"c2VjcmV0"}}]}`), &list); err != nil {
		t.Fatal(err)
	}
	k := kind{}
	k.Kind = "Secret"
	b, err := json.Marshal(withoutValues(k, list))
	if err != nil || strings.Contains(string(b), "c2VjcmV0") || !strings.Contains(string(b), "custom") {
		t.Errorf("%s, %v", b, err)
	}
}
