package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/mesh"
)

// joinAPIs is the resource APIs of the planes as one: a group's requests go to the plane that has the group, all else to
// pilot, and the lists of groups are joined.
func joinAPIs(planes map[mesh.Role]*peer) http.Handler {
	j := &joined{planes: planes, pass: map[mesh.Role]http.Handler{}}
	for role, p := range planes {
		j.pass[role] = passTo(p)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis", j.groups)
	mux.HandleFunc("GET /openapi/v3", j.openAPI)
	mux.HandleFunc("/apis/{group}/", j.group)
	mux.HandleFunc("/apis/{group}", j.group)
	mux.HandleFunc("/openapi/v3/apis/{group}/", j.group)
	mux.Handle("/", j.pass[mesh.RolePilot])
	return mux
}

type joined struct {
	planes map[mesh.Role]*peer
	pass   map[mesh.Role]http.Handler
}

// groupsOf asks every plane for its groups. They are asked anew each time: planes are replaced while this runs.
func (j *joined) groupsOf(ctx context.Context) (map[mesh.Role][]metav1.APIGroup, error) {
	found := map[mesh.Role][]metav1.APIGroup{}
	for role, p := range j.planes {
		var list metav1.APIGroupList
		if err := p.getJSON(ctx, "/apis", &list); err != nil {
			return nil, err
		}
		found[role] = list.Groups
	}
	return found, nil
}

func (j *joined) groups(w http.ResponseWriter, r *http.Request) {
	found, err := j.groupsOf(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	for _, role := range apiPlanes {
		list.Groups = append(list.Groups, found[role]...)
	}
	writeJSON(w, list)
}

func (j *joined) group(w http.ResponseWriter, r *http.Request) {
	found, err := j.groupsOf(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	for role, groups := range found {
		for _, g := range groups {
			if g.Name == r.PathValue("group") {
				j.pass[role].ServeHTTP(w, r)
				return
			}
		}
	}
	j.pass[mesh.RolePilot].ServeHTTP(w, r) // which says that there is no such group
}

// openAPI joins the lists of documents, by their paths.
func (j *joined) openAPI(w http.ResponseWriter, r *http.Request) {
	type index struct {
		Paths map[string]json.RawMessage `json:"paths"`
	}
	all := index{Paths: map[string]json.RawMessage{}}
	for _, p := range j.planes {
		var own index
		if err := p.getJSON(r.Context(), r.URL.Path, &own); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		for path, document := range own.Paths {
			all.Paths[strings.TrimPrefix(path, "/")] = document
		}
	}
	writeJSON(w, all)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}
