package apiserver

import (
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/composure-mesh/composure/api"
)

// Config is what a Server is made of.
type Config struct {
	// Kinds are the stored kinds, held in Store.
	Kinds []*api.Kind
	Store *Store
	// Views are read-only resources of core v1, held in ViewStore.
	Views     []View
	ViewStore *Store
	// Validate tells what is wrong with an object that decodes; optional. Such an object is refused.
	Validate func(*api.Object) api.Problems
	// Protected reports whether an object is built in: it can be read, and neither changed nor deleted; optional.
	Protected func(Key) bool
	// Warn names what is questionable about an object that is otherwise right; optional. The object is in Store by
	// then, but for a dry run. The warnings go to the client, which shows them.
	Warn func(*api.Object) []string
	// Version is the build's.
	Version string
	Log     *slog.Logger
}

// View is a read-only resource of core v1.
type View struct {
	Kind       string
	Plural     string
	Singular   string
	ShortNames []string
	Columns    []ViewColumn
}

// ViewColumn is one column behind NAME.
type ViewColumn struct {
	Name string
	Cell func(*unstructured.Unstructured) any
}

// Server is the HTTP handler of the resource API.
type Server struct {
	cfg       Config
	resources []*resource
	mux       *http.ServeMux
}

// resource is one stored kind or one view, as the handlers need it.
type resource struct {
	gr         schema.GroupResource
	versions   []string
	kind       string
	singular   string
	shortNames []string
	categories []string
	verbs      []string
	columns    []column
	store      *Store
	api        *api.Kind // nil for a view
}

type column struct {
	name, description string
	cell              func(*unstructured.Unstructured) any
}

// New makes a Server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	for _, k := range cfg.Kinds {
		s.resources = append(s.resources, s.kindResource(k))
	}
	for _, v := range cfg.Views {
		s.resources = append(s.resources, viewResource(v, cfg.ViewStore))
	}
	s.routeDiscovery()
	s.routeOpenAPI()
	s.routeNamespaces()
	for _, res := range s.resources {
		for _, v := range res.versions {
			s.routeResource(res, v)
		}
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, notFoundPath(r.URL.Path))
	})
	return s
}

// ServeHTTP serves the API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) kindResource(k *api.Kind) *resource {
	res := &resource{
		gr: k.Resource(), versions: k.Versions, kind: k.Kind, singular: k.Singular, shortNames: k.ShortNames, categories: k.Categories,
		verbs: []string{"create", "delete", "get", "list", "patch", "update", "watch"}, store: s.cfg.Store, api: k,
	}
	for _, c := range k.Columns {
		res.columns = append(res.columns, column{c.Name, c.Description, func(u *unstructured.Unstructured) any {
			o, err := api.Decode(s.cfg.Kinds, u.DeepCopy().Object)
			if err != nil { // an object of an older build that this one refuses
				return "<invalid>"
			}
			return c.Cell(o)
		}})
	}
	return res
}

func viewResource(v View, store *Store) *resource {
	res := &resource{
		gr: schema.GroupResource{Resource: v.Plural}, versions: []string{"v1"}, kind: v.Kind, singular: v.Singular,
		shortNames: v.ShortNames, verbs: []string{"get", "list", "watch"}, store: store,
	}
	for _, c := range v.Columns {
		res.columns = append(res.columns, column{c.Name, "", c.Cell})
	}
	return res
}

func (r *resource) base(version string) string {
	if r.gr.Group == "" {
		return "/api/" + version
	}
	return "/apis/" + r.gr.Group + "/" + version
}

func (r *resource) apiVersion(version string) string {
	return schema.GroupVersion{Group: r.gr.Group, Version: version}.String()
}

// as is u under another version of its group. u is not changed.
func (r *resource) as(u *unstructured.Unstructured, version string) *unstructured.Unstructured {
	content := make(map[string]any, len(u.Object))
	for k, v := range u.Object {
		content[k] = v
	}
	content["apiVersion"], content["kind"] = r.apiVersion(version), r.kind
	return &unstructured.Unstructured{Object: content}
}

func (s *Server) routeResource(res *resource, version string) {
	base := res.base(version)
	all, many := base+"/"+res.gr.Resource, base+"/namespaces/{namespace}/"+res.gr.Resource
	one := many + "/{name}"
	route := func(pattern string, h func(http.ResponseWriter, *http.Request, *resource, string) error) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r, res, version); err != nil {
				writeError(w, err)
			}
		})
	}
	route("GET "+all, s.list)
	route("GET "+many, s.list)
	route("GET "+one, s.get)
	if res.api != nil {
		route("POST "+many, s.create)
		route("PUT "+one, s.update)
		route("PATCH "+one, s.patch)
		route("DELETE "+one, s.delete)
	}
	for _, pattern := range []string{all, many, one} {
		route(pattern, methodNotAllowed)
	}
}

// versionInfo claims an API level that kubectl and client-go know how to talk to; the build stands behind it.
func (s *Server) versionInfo() version.Info {
	return version.Info{
		Major: "1", Minor: "31", GitVersion: "v1.31.0-composure." + s.cfg.Version,
		GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

// bookmarkInterval is how often a watch that asked for bookmarks gets one.
const bookmarkInterval = time.Minute
