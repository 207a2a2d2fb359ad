package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// object is a JSON object in the making.
type object = map[string]any

// routeOpenAPI serves what kubectl wants to know before it sends an object: that the server validates, by the
// parameter fieldValidation of PATCH, and for explain the fields that there are.
func (s *Server) routeOpenAPI() {
	paths := object{}
	groups := s.groups()
	if slices.ContainsFunc(s.resources, func(r *resource) bool { return r.api != nil && r.gr.Group == "" }) {
		groups = append(groups, metav1.APIGroup{Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "v1", Version: "v1"}}})
	}
	for _, g := range groups {
		prefix := "apis/"
		if g.Name == "" {
			prefix = "api/"
		}
		for _, v := range g.Versions {
			doc := s.openAPI(g.Name, v.Version)
			raw, err := json.Marshal(doc)
			if err != nil {
				panic(err) // it holds maps, strings and numbers only
			}
			sum := sha256.Sum256(raw)
			url := "/openapi/v3/" + prefix + v.GroupVersion
			paths[prefix+v.GroupVersion] = object{"serverRelativeURL": url + "?hash=" + hex.EncodeToString(sum[:8])}
			s.mux.HandleFunc("GET "+url, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write(raw)
			})
		}
	}
	s.mux.HandleFunc("GET /openapi/v3", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, object{"paths": paths})
	})
	s.mux.HandleFunc("GET /openapi/v2", s.openAPIv2)
}

// openAPIv2 is for a kubectl before 1.27, which can't do without it: it describes no kind, so that such a kubectl
// checks none itself and leaves that to the server.
func (s *Server) openAPIv2(w http.ResponseWriter, r *http.Request) {
	const protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	if !strings.Contains(r.Header.Get("Accept"), protobuf) {
		writeJSON(w, http.StatusOK, object{"swagger": "2.0", "info": object{"title": title, "version": s.cfg.Version}, "paths": object{}})
		return
	}
	raw, err := proto.Marshal(&openapiv2.Document{Swagger: "2.0", Info: &openapiv2.Info{Title: title, Version: s.cfg.Version}, Paths: &openapiv2.Paths{}})
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", strings.Replace(protobuf, "@", ".", 1)) // "@" is no valid media type, and only asked for
	_, _ = w.Write(raw)
}

// title is the name of the API in its own description.
const title = "Composure"

func (s *Server) openAPI(group, version string) object {
	schemas, paths := object{}, object{}
	for _, res := range s.resources {
		if res.api == nil || res.gr.Group != group {
			continue
		}
		gvk := object{"group": group, "version": version, "kind": res.kind}
		name := schemaName(group, version, res.kind)
		properties := object{"spec": res.api.Schema()}
		if res.api.Body() != nil {
			properties = maps.Clone(res.api.Schema()["properties"].(object))
		}
		properties["apiVersion"], properties["kind"], properties["metadata"] = object{"type": "string"}, object{"type": "string"}, object{"type": "object"}
		schemas[name] = object{"type": "object", "x-kubernetes-group-version-kind": []any{gvk}, "properties": properties}
		body := object{"application/json": object{"schema": object{"$ref": "#/components/schemas/" + name}}}
		op := func(action string) object {
			return object{
				"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
				"parameters": []any{queryParameter("dryRun"), queryParameter("fieldManager"), queryParameter("fieldValidation")},
				"responses":  object{"200": object{"description": "OK", "content": body}},
			}
		}
		many := res.base(version) + "/namespaces/{namespace}/" + res.gr.Resource
		paths[many] = object{"get": op("list"), "post": op("post")}
		paths[many+"/{name}"] = object{"get": op("get"), "put": op("put"), "patch": op("patch"), "delete": op("delete")}
	}
	return object{
		"openapi": "3.0.0", "info": object{"title": title, "version": s.cfg.Version},
		"paths": paths, "components": object{"schemas": schemas},
	}
}

func queryParameter(name string) object {
	return object{"name": name, "in": "query", "schema": object{"type": "string", "uniqueItems": true}}
}

// schemaName is the group in reverse, the version and the kind: io.istio.networking.v1.VirtualService.
func schemaName(group, version, kind string) string {
	if group == "" {
		group = "core.api.k8s.io"
	}
	parts := strings.Split(group, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(append(parts, version, kind), ".")
}
