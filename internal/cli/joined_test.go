package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
)

// TestJoinedAPIs: kubectl sees one server, whichever plane has the group.
func TestJoinedAPIs(t *testing.T) {
	e := running(t, "shop")
	env := &Env{Getenv: func(string) string { return "" }, Dir: "/", engine: e}
	planes := map[mesh.Role]*peer{}
	for _, role := range apiPlanes {
		p, err := env.plane(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		planes[role] = p
	}
	s := httptest.NewServer(joinAPIs(planes))
	defer s.Close()
	get := func(path string, v any) int {
		t.Helper()
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return resp.StatusCode
	}
	var groups metav1.APIGroupList
	get("/apis", &groups)
	listed := map[string]bool{}
	for _, g := range groups.Groups {
		if listed[g.Name] {
			t.Errorf("group %s is listed twice", g.Name)
		}
		listed[g.Name] = true
	}
	var documents struct{ Paths map[string]any }
	get("/openapi/v3", &documents)
	listed[""] = true // Kubernetes' own is no group
	for _, k := range api.Kinds() {
		at := "apis/" + k.APIVersion()
		if k.Group == "" {
			at = "api/" + k.APIVersion()
		}
		if !listed[k.Group] || documents.Paths[at] == nil {
			t.Errorf("%s is missing: listed %v", k.APIVersion(), listed[k.Group])
		}
		var list metav1.APIResourceList
		if code := get("/"+at+"/namespaces/default/"+k.Plural, &list); code != http.StatusOK || list.Kind != k.Kind+"List" {
			t.Errorf("%s: %d, a %s", k.Plural, code, list.Kind)
		}
		var document any
		if code := get("/openapi/v3/"+at, &document); code != http.StatusOK {
			t.Errorf("openapi of %s: %d", k.APIVersion(), code)
		}
	}
	var none metav1.Status
	if code := get("/apis/example.com/v1", &none); code != http.StatusNotFound || none.Kind != "Status" {
		t.Errorf("a group that nobody has: %d %+v", code, none)
	}
}
