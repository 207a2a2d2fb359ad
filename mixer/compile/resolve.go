package compile

import (
	"strings"

	"github.com/composure-mesh/composure/api"
)

// FullName is how Mixer names an object: handler.denier.istio-system.
func FullName(o *api.Object) string {
	return o.Meta.Name + "." + o.Kind.Kind + "." + o.Meta.Namespace
}

// resolve finds the object that a reference from the namespace means: name.kind.namespace, name.kind, name.namespace or name,
// where kind is that of the long form if there is none. What the namespace does not have, the root namespace may. It is nil
// where there is no such object.
func (x *Index) resolve(reference, namespace, long string) *api.Object {
	if o := x.resolveIn(reference, namespace, long); o != nil {
		return o
	}
	return x.resolveIn(reference, api.RootNamespace, long)
}

func (x *Index) resolveIn(reference, namespace, long string) *api.Object {
	candidates := [...]string{reference, reference + "." + namespace, reference + "." + long + "." + namespace, ""}
	if i := strings.LastIndexByte(reference, '.'); i >= 0 {
		candidates[3] = reference[:i] + "." + long + reference[i:]
	}
	for _, name := range candidates {
		if o := x.objects[name]; o != nil {
			return o
		}
	}
	return nil
}

// handler and instance are the objects that references mean, with their specs; nil where there are none such.
func (x *Index) handler(reference, namespace string) (*api.Object, *api.Handler) {
	if o := x.resolve(reference, namespace, "handler"); o != nil {
		if h, ok := o.Spec.(*api.Handler); ok {
			return o, h
		}
	}
	return nil, nil
}

func (x *Index) instance(reference, namespace string) (*api.Object, *api.Instance) {
	if o := x.resolve(reference, namespace, "instance"); o != nil {
		if i, ok := o.Spec.(*api.Instance); ok {
			return o, i
		}
	}
	return nil, nil
}
