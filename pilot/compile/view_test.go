package compile_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/pilot/compile"
)

// An Index that takes over what another has made of the same facts says the same as one that is made anew, whatever the
// other was asked, and although its configuration was another.
func TestLike(t *testing.T) {
	facts := bookinfo()
	const entry = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pay}
spec: {hosts: [pay.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}
`
	const rules = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: pay.example}}]}]}
`
	var like *compile.Index
	for _, config := range []string{rules, entry + "---" + rules, rules, selecting, entry} {
		v := compile.View{Facts: facts, Intent: decode(t, "config", config), TrustDomain: "cluster.local"}
		anew := compile.New(v)
		v.Like = like
		like = compile.New(v)
		if diff := cmp.Diff(anew.CheckAll(), like.CheckAll()); diff != "" {
			t.Errorf("%s\n(-anew +like):\n%s", config, diff)
		}
		for _, w := range facts.Workloads {
			want, _, err := anew.Compile(w.Name)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := like.Compile(w.Name)
			if err != nil || got.Version != want.Version {
				t.Errorf("%s: %s has another snapshot, or none: %v", config, w.Name, err)
			}
		}
	}
}
