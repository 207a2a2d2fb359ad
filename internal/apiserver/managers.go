package apiserver

import (
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
)

// tracker writes into next which manager set which of its fields.
type tracker func(current, next *unstructured.Unstructured) (*unstructured.Unstructured, error)

// managerOf names who sets fields: the request's fieldManager, or else the program in its User-Agent.
func managerOf(r *http.Request) string {
	if name := r.URL.Query().Get("fieldManager"); name != "" {
		return name
	}
	name, _, _ := strings.Cut(r.UserAgent(), "/")
	if name == "" {
		return "unknown"
	}
	return name
}

// fieldManager keeps managedFields. There is no schema in it, so a list is replaced as a whole: that is how Istio's
// own resources behave too.
func (wr *write) fieldManager() (*managedfields.FieldManager, error) {
	gvk := schema.GroupVersionKind{Group: wr.gr.Group, Version: wr.version, Kind: wr.kind}
	m, err := managedfields.NewDefaultCRDFieldManager(managedfields.NewDeducedTypeConverter(), versions{}, versions{}, versions{}, gvk, gvk.GroupVersion(), "", nil)
	if err != nil {
		return nil, fmt.Errorf("managed fields: %w", err)
	}
	return m, nil
}

// live is current as the request's version has it, or the empty object.
func (wr *write) live(current *unstructured.Unstructured) *unstructured.Unstructured {
	if current == nil {
		current = &unstructured.Unstructured{Object: map[string]any{}}
	}
	return wr.as(current, wr.version).DeepCopy()
}

func (wr *write) trackUpdate(current, next *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	m, err := wr.fieldManager()
	if err != nil {
		return nil, err
	}
	tracked, err := m.Update(wr.live(current), next, wr.manager)
	if err != nil {
		return nil, apierrors.NewBadRequest("metadata.managedFields: " + err.Error())
	}
	return tracked.(*unstructured.Unstructured), nil
}

func keepManagers(_, next *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	return next, nil
}

func (wr *write) mergeApplied(current, applied *unstructured.Unstructured, force bool) (*unstructured.Unstructured, error) {
	if applied.GetManagedFields() != nil {
		return nil, apierrors.NewBadRequest("metadata.managedFields: want none in a server-side apply")
	}
	if gvk := applied.GroupVersionKind(); gvk.GroupKind() != wr.groupKind() || gvk.Version != wr.version {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the request is for %s of %s, the object is a %s of %s", wr.kind, wr.apiVersion(wr.version), gvk.Kind, gvk.GroupVersion()))
	}
	m, err := wr.fieldManager()
	if err != nil {
		return nil, err
	}
	merged, err := m.Apply(wr.live(current), applied.DeepCopy(), wr.manager, force)
	if err != nil {
		return nil, err // a Status: a conflict names the other managers
	}
	return merged.(*unstructured.Unstructured), nil
}

// versions converts between the versions of a group, which are aliases, for the field manager.
type versions struct{}

func (versions) Convert(_, _, _ any) error {
	return fmt.Errorf("convert: versions are aliases of one form")
}

func (versions) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	u := in.(*unstructured.Unstructured)
	to, ok := gv.KindForGroupVersionKinds([]schema.GroupVersionKind{u.GroupVersionKind()})
	if !ok {
		return nil, fmt.Errorf("convert %s: no such version", u.GroupVersionKind())
	}
	out := u.DeepCopy()
	out.SetGroupVersionKind(to)
	return out, nil
}

func (versions) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (versions) Default(runtime.Object) {}

func (versions) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{}}}
	u.SetGroupVersionKind(kind)
	return u, nil
}

var (
	_ runtime.ObjectConvertor = versions{}
	_ runtime.ObjectDefaulter = versions{}
	_ runtime.ObjectCreater   = versions{}
	_ metav1.Object           = (*unstructured.Unstructured)(nil)
)
