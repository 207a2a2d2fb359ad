package apiserver

import (
	"net/http"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func (s *Server) routeDiscovery() {
	fixed := func(pattern string, v any) {
		s.mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, v) })
	}
	fixed("/version", s.versionInfo())
	for _, probe := range []string{"/healthz", "/livez", "/readyz"} {
		s.mux.HandleFunc("GET "+probe, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("ok"))
		})
	}
	fixed("/api", metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"}})
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	for _, g := range s.groups() {
		list.Groups = append(list.Groups, g)
		alone := g
		alone.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		fixed("/apis/"+g.Name, alone)
		for _, v := range g.Versions {
			fixed("/apis/"+v.GroupVersion, s.resourceList(schema.GroupVersion{Group: g.Name, Version: v.Version}))
		}
	}
	fixed("/apis", list)
	core := s.resourceList(schema.GroupVersion{Version: "v1"})
	core.APIResources = append(core.APIResources, metav1.APIResource{
		Name: "namespaces", SingularName: "namespace", Kind: "Namespace", ShortNames: []string{"ns"}, Verbs: []string{"get", "list"},
	})
	fixed("/api/v1", core)
}

func (s *Server) groups() []metav1.APIGroup {
	var groups []metav1.APIGroup
	for _, res := range s.resources {
		known := slices.ContainsFunc(groups, func(g metav1.APIGroup) bool { return g.Name == res.gr.Group })
		if res.gr.Group == "" || known {
			continue
		}
		g := metav1.APIGroup{Name: res.gr.Group}
		for _, v := range res.versions {
			g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: res.apiVersion(v), Version: v})
		}
		g.PreferredVersion = g.Versions[0]
		groups = append(groups, g)
	}
	return groups
}

func (s *Server) resourceList(gv schema.GroupVersion) metav1.APIResourceList {
	list := metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String(), APIResources: []metav1.APIResource{},
	}
	for _, res := range s.resources {
		if res.gr.Group == gv.Group && slices.Contains(res.versions, gv.Version) {
			list.APIResources = append(list.APIResources, metav1.APIResource{
				Name: res.gr.Resource, SingularName: res.singular, Kind: res.kind, Namespaced: true, Verbs: res.verbs,
				ShortNames: res.shortNames, Categories: res.categories,
			})
		}
	}
	return list
}
