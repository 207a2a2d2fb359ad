package compile

import (
	"bytes"
	_ "embed"
	"sync"

	"github.com/composure-mesh/composure/api"
)

//go:embed defaults.yaml
var defaultsYAML []byte

// Defaults are the objects that say what proxies do without being told: the rules that Istio 1.0 came with, and what
// stands behind them. They are there always and can't be changed.
var Defaults = sync.OnceValue(func() []*api.Object {
	docs, err := api.DecodeYAML(api.Config(), "defaults.yaml", bytes.NewReader(defaultsYAML))
	if err != nil {
		panic(err) // a test holds that it decodes
	}
	objects := make([]*api.Object, len(docs))
	for i := range docs {
		objects[i] = docs[i].Object
	}
	return objects
})

var defaultNames = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	for _, o := range Defaults() {
		names[o.String()] = true
	}
	return names
})

// IsDefault reports whether o is one of Defaults.
func IsDefault(o *api.Object) bool { return defaultNames()[o.String()] }
