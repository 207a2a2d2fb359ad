package api

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// ConfigGroup is the group of the kinds that mixer owns: Mixer's of Istio 1.0
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/).
const ConfigGroup = "config.istio.io"

// Config are the kinds that mixer holds.
func Config() []*Kind {
	kinds := []*Kind{Rule(), handlerKind(), instanceKind(), AttributeManifest(), QuotaSpec(), QuotaSpecBinding(), RateLimit()}
	for i := range adapters {
		kinds = append(kinds, adapters[i].kind())
	}
	for i := range templates {
		kinds = append(kinds, templates[i].kind())
	}
	return kinds
}

// adapters are what a handler may be.
var adapters = []Adapter{denier(), fluentd(), kubernetesEnv(), listChecker(), memQuota(), prometheus(), redisQuota(), stdio()}

// templates are what an instance may be made of.
var templates = []Template{checkNothing(), kubernetes(), listEntry(), logEntry(), metric(), quota(), reportNothing()}

// configKind completes k.
func configKind(k Kind) *Kind {
	k.Group = ConfigGroup
	k.Versions = []string{"v1alpha2"}
	k.Categories = append(k.Categories, "istio-io", "config-istio-io")
	k.bare = true
	if k.Plural == "" {
		k.Plural = k.Kind + "s"
	}
	k.Plural = strings.ToLower(k.Plural)
	k.Singular = strings.ToLower(k.Kind)
	return &k
}

// structKind is a kind of config.istio.io whose spec is a struct like newSpec's.
func structKind(k Kind, newSpec func() any) *Kind {
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		s := newSpec()
		return s, decodeStruct(Path{"spec"}, spec, s)
	}
	k.schema = func() map[string]any { return structSchema(reflect.TypeOf(newSpec()).Elem(), "") }
	return configKind(k)
}

// Adapter is what a handler may be: one that mixer and the proxies have built in.
type Adapter struct {
	// Name is the compiledAdapter, and the kind of the short form.
	Name   string
	plural string
	// Templates are those that it takes instances of.
	Templates []string
	// newParams makes a struct with the defaults.
	newParams func() any
	validate  func(path Path, params any) Problems
}

// Handler is the spec of a handler, in the long form or as a kind of its own.
type Handler struct {
	// Adapter is the built-in one; empty where Address says where it is.
	Adapter string
	// Params is a pointer to the adapter's struct, such as *Denier.
	Params any
	// Address is the URL of an adapter outside of mixer.
	Address string
}

// FindAdapter is the adapter of the name, or nil.
func FindAdapter(name string) *Adapter {
	if i := slices.IndexFunc(adapters, func(a Adapter) bool { return a.Name == name }); i >= 0 {
		return &adapters[i]
	}
	return nil
}

func (a *Adapter) kind() *Kind {
	k := structKind(Kind{Kind: a.Name, Plural: a.plural}, a.newParams)
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		h := &Handler{Adapter: a.Name}
		var ps Problems
		h.Params, ps = a.decode(Path{"spec"}, spec)
		return h, ps
	}
	k.validate = func(*Object) Problems { return nil } // done in decode, which knows the path
	return k
}

func (a *Adapter) decode(path Path, params any) (any, Problems) {
	p := a.newParams()
	ps := decodeStruct(path, params, p)
	if len(ps) == 0 && a.validate != nil {
		ps = a.validate(path, p)
	}
	return p, ps
}

// Template is what an instance may be made of.
type Template struct {
	// Name is the compiledTemplate, and the kind of the short form.
	Name   string
	plural string
	// Check says that it is for handlers that decide, Report for those that write down.
	Check, Report bool
	newParams     func() any
}

// Instance is the spec of an instance, in the long form or as a kind of its own. The values of its fields are
// expressions.
type Instance struct {
	Template string
	// Params is a pointer to the template's struct, such as *Metric.
	Params any
}

// FindTemplate is the template of the name, or nil.
func FindTemplate(name string) *Template {
	if i := slices.IndexFunc(templates, func(t Template) bool { return t.Name == name }); i >= 0 {
		return &templates[i]
	}
	return nil
}

func (t *Template) kind() *Kind {
	k := structKind(Kind{Kind: t.Name, Plural: t.plural}, t.newParams)
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		i := &Instance{Template: t.Name, Params: t.newParams()}
		return i, decodeStruct(Path{"spec"}, spec, i.Params)
	}
	k.validate = func(*Object) Problems { return nil } // its expressions are mixer's to read
	return k
}

func adapterNames() string {
	names := make([]string, len(adapters))
	for i := range adapters {
		names[i] = adapters[i].Name
	}
	return strings.Join(names, ", ")
}

func templateNames() string {
	names := make([]string, len(templates))
	for i := range templates {
		names[i] = templates[i].Name
	}
	return strings.Join(names, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
