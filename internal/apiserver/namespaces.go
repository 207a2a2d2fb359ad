package apiserver

import (
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/composure-mesh/composure/api"
)

// Namespaces are names in this mesh, not objects: every one exists. A list shows those in use.
func (s *Server) routeNamespaces() {
	res := &resource{gr: schema.GroupResource{Resource: "namespaces"}, versions: []string{"v1"}, kind: "Namespace"}
	s.mux.HandleFunc("GET /api/v1/namespaces", func(w http.ResponseWriter, r *http.Request) {
		if watchWanted(r) {
			writeError(w, apierrors.NewMethodNotSupported(res.gr, "watch"))
			return
		}
		items := []*unstructured.Unstructured{}
		for _, name := range s.namespaces() {
			items = append(items, namespace(name))
		}
		meta := metav1.ListMeta{ResourceVersion: formatRevision(s.cfg.Store.Revision())}
		if negotiate(r) == formatTable {
			if err := s.writeTable(w, r, http.StatusOK, res, meta, items); err != nil {
				writeError(w, err)
			}
			return
		}
		writeJSON(w, http.StatusOK, map[string]any{"apiVersion": "v1", "kind": "NamespaceList", "metadata": meta, "items": items})
	})
	s.mux.HandleFunc("GET /api/v1/namespaces/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if len(validation.IsDNS1123Label(name)) > 0 {
			writeError(w, apierrors.NewNotFound(res.gr, name))
			return
		}
		if err := s.writeObject(w, r, http.StatusOK, res, namespace(name)); err != nil {
			writeError(w, err)
		}
	})
}

func (s *Server) namespaces() []string {
	names := append(s.cfg.Store.Namespaces(), api.DefaultNamespace)
	if s.cfg.ViewStore != nil {
		names = append(names, s.cfg.ViewStore.Namespaces()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func namespace(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}, "status": map[string]any{"phase": "Active"},
	}}
}
