package api_test

import (
	"strings"
	"testing"

	"github.com/composure-mesh/composure/api"
)

// What Mixer had and this mesh has not is refused by a sentence that says what to use, in the short form and
// in the long one.
func TestNotBuilt(t *testing.T) {
	adapters := "bypass circonus cloudwatch dogstatsd noop opa rbac servicecontrol signalfx solarwinds stackdriver statsd zipkin"
	templates := "apikey authorization edge servicecontrolreport tracespan"
	refused := func(name, kind, spec, path string) {
		t.Helper()
		text := "apiVersion: config.istio.io/v1alpha2\nkind: " + kind + "\nmetadata: {name: x}\nspec: " + spec
		got := problemsOf(t, kinds, text)
		if len(got) != 1 || !strings.HasPrefix(got[0], path+": "+name+" of Mixer is not built: want ") {
			t.Errorf("%s: %q, want it refused at %s with what to use instead", text, got, path)
		}
	}
	for name := range strings.FieldsSeq(adapters + " " + templates + " adapter template HTTPAPISpec HTTPAPISpecBinding") {
		refused(name, name, "{}", "kind")
	}
	for name := range strings.FieldsSeq(adapters) {
		refused(name, "handler", "{compiledAdapter: "+name+", params: {}}", "spec.compiledAdapter")
	}
	for name := range strings.FieldsSeq(templates) {
		refused(name, "instance", "{compiledTemplate: "+name+", params: {}}", "spec.compiledTemplate")
	}
	// What is built is not said to be missing.
	for _, k := range api.Config() {
		if _, err := api.Find(kinds, "config.istio.io/v1alpha2", k.Kind); err != nil && strings.Contains(err.Error(), "not built") {
			t.Error(err)
		}
	}
}
