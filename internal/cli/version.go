package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// versions is what `meshctl version` tells.
type versions struct {
	Client  string            `json:"client"`
	Mesh    string            `json:"mesh,omitempty"`
	Planes  map[string]string `json:"planes,omitempty"`
	Proxies map[string]string `json:"proxies,omitempty"` // by workload
}

func newVersion(env *Env) *cobra.Command {
	var (
		f          format
		clientOnly bool
	)
	c := &cobra.Command{
		Use:   "version",
		Short: "Versions of meshctl, and of the running mesh's planes and proxies",
		Args:  args(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return runVersion(c.Context(), env, f, clientOnly) },
	}
	addOutput(c, &f, "table", "yaml", "json")
	c.Flags().BoolVar(&clientOnly, "client", false, "meshctl only")
	return c
}

func runVersion(ctx context.Context, env *Env, f format, clientOnly bool) error {
	v := versions{Client: component.Version}
	if !clientOnly {
		var err error
		if v, err = env.versions(ctx); err != nil {
			return err
		}
	}
	if f != "table" {
		return encode(env.Out, f, v)
	}
	rows := [][]string{{"meshctl", v.Client}}
	for _, r := range []mesh.Role{mesh.RoleKeeper, mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer} {
		if p, ok := v.Planes[string(r)]; ok {
			rows = append(rows, []string{string(r), p})
		}
	}
	for _, version := range sortedValues(v.Proxies) {
		var of []string
		for _, w := range sortedKeys(v.Proxies) {
			if v.Proxies[w] == version {
				of = append(of, w)
			}
		}
		rows = append(rows, []string{"proxy", fmt.Sprintf("%s (%s)", version, strings.Join(of, ", "))})
	}
	return table(env.Out, []string{"COMPONENT", "VERSION"}, rows)
}

// versions are meshctl's and those of the mesh, if one runs.
func (e *Env) versions(ctx context.Context) (versions, error) {
	v := versions{Client: component.Version}
	m, err := e.mesh(ctx)
	var coded *codedError
	switch {
	case err == nil:
		v.addMesh(m)
	case errors.As(err, &coded) && coded.code == exitUnreachable:
		e.talk("%v", err) // the client's version is still an answer
	default:
		return v, err
	}
	return v, nil
}

// addMesh takes the versions from the images' tags: a container that runs has exactly the image it names.
func (v *versions) addMesh(m *runningMesh) {
	v.Mesh, v.Planes, v.Proxies = m.Name, map[string]string{}, map[string]string{}
	for _, c := range m.containers {
		_, tag, _ := strings.Cut(c.Image, ":")
		switch r := mesh.Role(c.Labels[labels.Role]); r {
		case mesh.RoleKeeper, mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer:
			v.Planes[string(r)] = tag
		case mesh.RoleProxy, mesh.RoleGateway:
			v.Proxies[c.Labels[labels.Workload]] = tag
		}
	}
}
