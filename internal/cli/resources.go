package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/composure-mesh/composure/mesh"
)

// apiPlanes are the planes that may serve resources, in the order in which they are asked.
var apiPlanes = []mesh.Role{mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer}

// resourceClient talks to the resource APIs of the mesh's planes, which follow Kubernetes' conventions.
type resourceClient struct {
	env   *Env
	kinds []kind
	away  error // of the planes that did not answer
}

// kind is a kind of resource that one of the planes serves.
type kind struct {
	metav1.APIResource
	plane     *peer
	preferred bool // its version is the group's preferred one
}

func (k kind) path(namespace, name string) string {
	p := "/apis/" + k.Group + "/" + k.Version
	if k.Group == "" {
		p = "/api/" + k.Version
	}
	if k.Namespaced && namespace != "" {
		p += "/namespaces/" + namespace
	}
	p += "/" + k.Name
	if name != "" {
		p += "/" + name
	}
	return p
}

// resources discovers what the planes serve. One that is away takes only its own kinds with it.
func (e *Env) resources(ctx context.Context) (*resourceClient, error) {
	if _, err := e.mesh(ctx); err != nil {
		return nil, err
	}
	c := &resourceClient{env: e}
	for _, role := range apiPlanes {
		p, err := e.plane(ctx, role)
		if err == nil {
			err = c.discover(ctx, p, role == mesh.RolePilot)
		}
		if err != nil {
			c.away = errors.Join(c.away, err)
		}
	}
	if len(c.kinds) == 0 {
		return nil, c.away
	}
	return c, nil
}

// discover adds what p serves; core says that it is the one that has the core group.
func (c *resourceClient) discover(ctx context.Context, p *peer, core bool) error {
	var groups metav1.APIGroupList
	if err := p.getJSON(ctx, "/apis", &groups); err != nil {
		return err
	}
	type groupVersion struct {
		path, group, version string
		preferred            bool
	}
	var versions []groupVersion
	if core {
		versions = append(versions, groupVersion{"/api/v1", "", "v1", true})
	}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			versions = append(versions, groupVersion{"/apis/" + v.GroupVersion, g.Name, v.Version, v.Version == g.PreferredVersion.Version})
		}
	}
	for _, v := range versions {
		var list metav1.APIResourceList
		if err := p.getJSON(ctx, v.path, &list); err != nil {
			return err
		}
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") {
				continue // a subresource
			}
			r.Group, r.Version = v.group, v.version
			c.kinds = append(c.kinds, kind{APIResource: r, plane: p, preferred: v.preferred})
		}
	}
	return nil
}

// named finds a kind by what people type: plural, singular, kind or short name, with or without .group.
func (c *resourceClient) named(word string) (kind, error) {
	w := strings.ToLower(word)
	for _, k := range c.kinds {
		if !k.preferred {
			continue
		}
		all := append([]string{k.Name, k.SingularName, strings.ToLower(k.Kind), k.Name + "." + k.Group}, k.ShortNames...)
		if slices.Contains(all, w) {
			return k, nil
		}
	}
	var have []string
	for _, k := range c.kinds {
		if k.preferred {
			have = append(have, k.Name)
		}
	}
	slices.Sort(have)
	if c.away != nil {
		return kind{}, fmt.Errorf("no plane that answers has a kind %q: %w", word, c.away)
	}
	return kind{}, withCode(exitUsage, fmt.Errorf("the mesh has no kind %q; it has: %s", word, strings.Join(slices.Compact(have), ", ")))
}

// of finds the kind of an object, in the object's own version.
func (c *resourceClient) of(u *unstructured.Unstructured) (kind, error) {
	gvk := u.GroupVersionKind()
	for _, k := range c.kinds {
		if k.Group == gvk.Group && k.Version == gvk.Version && k.Kind == gvk.Kind {
			return k, nil
		}
	}
	if c.away != nil {
		return kind{}, fmt.Errorf("no plane that answers has a kind %q of apiVersion %q: %w", u.GetKind(), u.GetAPIVersion(), c.away)
	}
	return kind{}, fmt.Errorf("apiVersion %q has no kind %q in this mesh; see `meshctl get --help`", u.GetAPIVersion(), u.GetKind())
}

// send sends an object, or nothing, and decodes the answer into out unless that is nil. Warnings of the server
// are shown. An error carries the Status of the server: its reason is its exit code.
func (c *resourceClient) send(ctx context.Context, k kind, method, path string, header http.Header, in, out any) error {
	var body io.Reader
	if header == nil {
		header = http.Header{}
	}
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", "application/json")
		}
	}
	resp, err := k.plane.do(ctx, method, path, header, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for _, w := range resp.Header.Values("Warning") {
		if _, text, ok := strings.Cut(w, ` "`); ok {
			c.env.talk("warning: %s", strings.ReplaceAll(strings.TrimSuffix(text, `"`), `\"`, `"`))
		}
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return withCode(exitUnreachable, err)
	}
	if resp.StatusCode >= 300 {
		return statusError(resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// apiError is a Status that a plane answered with.
type apiError struct {
	code int
	msg  string
}

func (e *apiError) Error() string { return e.msg }

func statusError(code int, body []byte) error {
	var s metav1.Status
	msg := strings.TrimSpace(string(body))
	if json.Unmarshal(body, &s) == nil && s.Message != "" {
		msg = s.Message
	}
	err := &apiError{code, msg}
	if code == http.StatusNotFound {
		return withCode(exitNotFound, err)
	}
	return err
}
