package apiserver

import (
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

// selection is what a list or a watch is narrowed to.
type selection struct {
	namespace string // empty: all
	labels    labels.Selector
	fields    fields.Selector
}

func selectionOf(r *http.Request) (selection, error) {
	sel := selection{namespace: r.PathValue("namespace")}
	var err error
	if sel.labels, err = labels.Parse(r.URL.Query().Get("labelSelector")); err != nil {
		return sel, apierrors.NewBadRequest("labelSelector: " + err.Error())
	}
	if sel.fields, err = fields.ParseSelector(r.URL.Query().Get("fieldSelector")); err != nil {
		return sel, apierrors.NewBadRequest("fieldSelector: " + err.Error())
	}
	for _, req := range sel.fields.Requirements() {
		if req.Field != "metadata.name" && req.Field != "metadata.namespace" {
			return sel, apierrors.NewBadRequest("fieldSelector: " + req.Field + " is not supported, want metadata.name or metadata.namespace")
		}
	}
	return sel, nil
}

func (s selection) matches(o *unstructured.Unstructured) bool {
	return o != nil && (s.namespace == "" || s.namespace == o.GetNamespace()) && s.labels.Matches(labels.Set(o.GetLabels())) &&
		s.fields.Matches(fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()})
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, res *resource, version string) error {
	sel, err := selectionOf(r)
	if err != nil {
		return err
	}
	if watchWanted(r) {
		return s.watch(w, r, res, version, sel)
	}
	all, revision := res.store.List(res.gr, sel.namespace)
	items := []*unstructured.Unstructured{}
	for _, o := range all {
		if sel.matches(o) {
			items = append(items, res.as(o, version))
		}
	}
	meta := metav1.ListMeta{ResourceVersion: formatRevision(revision)}
	switch negotiate(r) {
	case formatTable:
		return s.writeTable(w, r, http.StatusOK, res, meta, items)
	case formatObject:
		writeJSON(w, http.StatusOK, map[string]any{
			"apiVersion": res.apiVersion(version), "kind": res.kind + "List", "metadata": meta, "items": items,
		})
		return nil
	}
	return errNotAcceptable()
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, res *resource, version string) error {
	key := Key{res.gr, r.PathValue("namespace"), r.PathValue("name")}
	o := res.store.Get(key)
	if o == nil {
		return apierrors.NewNotFound(res.gr, key.Name)
	}
	return s.writeObject(w, r, http.StatusOK, res, res.as(o, version))
}

func (s *Server) writeObject(w http.ResponseWriter, r *http.Request, code int, res *resource, o *unstructured.Unstructured) error {
	switch negotiate(r) {
	case formatTable:
		return s.writeTable(w, r, code, res, metav1.ListMeta{ResourceVersion: o.GetResourceVersion()}, []*unstructured.Unstructured{o})
	case formatObject:
		writeJSON(w, code, o)
		return nil
	}
	return errNotAcceptable()
}
