package compile_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
)

const selecting = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceLabels: {version: v2}}]
    route: [{destination: {host: ratings}}]
  - route: [{destination: {host: reviews}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: details}
spec:
  hosts: [details]
  tcp:
  - match: [{sourceLabels: {app: ratings}}]
    route: [{destination: {host: db}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: page}
spec:
  workloadSelector: {labels: {app: productpage}}
  egress: [{hosts: ["*/reviews"]}]
`

// TestGroups: what proxies share is what each would get by itself, and those that no rule tells apart share it.
func TestGroups(t *testing.T) {
	for name, tc := range map[string]struct {
		rules  string
		groups int
	}{
		"no rules":       {"", 4}, // the front's, ratings', the gateway's and that of who stands alone; db's has no proxy
		"rules by label": {selecting, 8},
	} {
		v := compile.View{Facts: bookinfo(), Intent: decode(t, "rules.yaml", tc.rules), TrustDomain: "cluster.local"}
		x := compile.New(v)
		groups := map[*compile.Group]bool{}
		for _, w := range v.Facts.Workloads {
			g, err := x.Group(w.Name)
			if err != nil {
				t.Fatal(err)
			}
			if w.Name != "db" {
				groups[g] = true
			}
			if diff := cmp.Diff(compile.Alone(v, w.Name), g.Snapshot); diff != "" {
				t.Errorf("%s: %s (-alone +shared):\n%s", name, w.Name, diff)
			}
		}
		if len(groups) != tc.groups {
			t.Errorf("%s: %d groups, want %d", name, len(groups), tc.groups)
		}
	}
}

// TestDelta: of any two snapshots, what has changed turns the one into the other, through the wire.
func TestDelta(t *testing.T) {
	smaller := bookinfo()
	smaller.Workloads = smaller.Workloads[:6]
	changed := bookinfo()
	changed.Workloads[7].Running = false
	changed.Workloads[4].Labels = map[string]string{"version": "v9"}
	registry := `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: all}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
`
	views := []compile.View{
		{Facts: bookinfo()}, {Facts: bookinfo(), Intent: decode(t, "rules", selecting)}, {Facts: smaller}, {Facts: changed},
		{Facts: smaller, Intent: decode(t, "rules", registry)},
	}
	indexes := make([]*compile.Index, len(views))
	for i, v := range views {
		indexes[i] = compile.New(v)
	}
	for i, from := range indexes {
		for j, to := range indexes {
			for _, workload := range []string{"productpage-v1", "ratings-v1", "istio-ingressgateway"} {
				a, _, err := from.Compile(workload)
				if err != nil {
					t.Fatal(err)
				}
				b, _, err := to.Compile(workload)
				if err != nil {
					t.Fatal(err)
				}
				encoded, err := snapshot.Diff(a, b).Encode()
				if err != nil {
					t.Fatal(err)
				}
				var proxy *snapshot.Workload
				if !cmp.Equal(a.Proxy, b.Proxy) {
					proxy = &b.Proxy
				}
				got := through(t, a, func() ([][]byte, error) { return snapshot.DeltaLine(b.Version, a.Version, proxy, encoded) })
				if diff := cmp.Diff(b, got); diff != "" {
					t.Errorf("%s from view %d to %d (-want +got):\n%s", workload, i, j, diff)
				}
				if i == j && len(encoded) > len(`{"delta":{}}`) {
					t.Errorf("%s has not changed, and its change is %s", workload, encoded)
				}
			}
		}
	}
}

// TestWholeLine: a whole snapshot comes through the wire as it is, whatever the proxy had.
func TestWholeLine(t *testing.T) {
	x := compile.New(compile.View{Facts: bookinfo(), Intent: decode(t, "rules", selecting), TrustDomain: "cluster.local"})
	want, _, err := x.Compile("productpage-v1")
	if err != nil {
		t.Fatal(err)
	}
	g, err := x.Group("productpage-v1")
	if err != nil {
		t.Fatal(err)
	}
	got := through(t, nil, func() ([][]byte, error) { return g.Shared.Line(want.Version, &want.Proxy) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := got.Seal(); err != nil || got.Version != want.Version {
		t.Errorf("sealed again its version is %s, %v, want %s", got.Version, err, want.Version)
	}
}

// through is what a proxy with the snapshot last makes of a line.
func through(t *testing.T, last *snapshot.Snapshot, line func() ([][]byte, error)) *snapshot.Snapshot {
	t.Helper()
	parts, err := line()
	if err != nil {
		t.Fatal(err)
	}
	raw := bytes.Join(parts, nil)
	if !bytes.HasSuffix(raw, []byte("\n")) || bytes.Count(raw, []byte("\n")) != 1 {
		t.Fatalf("it is not one line: %q", raw)
	}
	var u snapshot.Update
	if err := json.Unmarshal(raw, &u); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	got, err := u.Apply(last)
	if err != nil {
		t.Fatal(err)
	}
	if u.Base != "" {
		if _, err := u.Apply(&snapshot.Snapshot{Version: "another"}); err == nil {
			t.Error("a change is taken by who has another version")
		}
	}
	return got
}
