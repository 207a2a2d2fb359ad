package compose

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"gopkg.in/yaml.v3"
)

// flatten makes one file of the project and its override, with variables as they are written, and verifies that
// it says the same as the two. A field that would not, for the way that Compose reads short forms with variables
// in them, is written with its variables resolved.
func (s *Source) flatten(ctx context.Context, cfg Config, dir string, override []byte) ([]byte, error) {
	if err := s.flattenable(dir); err != nil {
		return nil, err
	}
	config := s.config
	config.ConfigFiles = append(slices.Clone(config.ConfigFiles),
		types.ConfigFile{Filename: filepath.Join(s.Dir, meshOutput), Content: override})
	project, unknown, err := s.loadTyped(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("flatten the project: %w", err)
	}
	model, err := loader.LoadModelWithContext(ctx, config, raw, s.called)
	if err != nil {
		return nil, fmt.Errorf("flatten the project with its variables as they are written, which an override does not need: %w", err)
	}
	withoutEnvironment(model)
	for _, key := range []string{headerKey, "include", "version"} {
		delete(model, key)
	}
	services, _ := model["services"].(map[string]any)
	for name, svc := range services {
		if m, ok := svc.(map[string]any); ok {
			delete(m, "extends")
			retype(m, project.Services[name].Volumes)
		}
	}
	e := &emitter{src: &Source{project: project, raw: model}, plan: &Plan{}, resolved: map[fieldOf]bool{}}
	for name, svc := range services {
		for _, field := range []string{"depends_on", "networks", "models"} {
			if m, ok := svc.(map[string]any); ok && hasVariableKey(m[field]) {
				m[field] = e.resolvedField(name, field)
			}
		}
	}
	for {
		out := s.render(dir, cfg, encode(fullBody(model)))
		diffs, err := s.compareFull(ctx, dir, out, project, unknown)
		if err != nil {
			return nil, err
		}
		if len(diffs) == 0 {
			return out, nil
		}
		if !e.resolve(diffs) {
			return nil, fmt.Errorf("the flattened file would not say the same as the project and its override, so nothing is written: %w", diffs[0])
		}
		for f := range e.resolved {
			if m, ok := services[f.service].(map[string]any); ok {
				m[f.field] = e.field(f.service, f.field)
			}
		}
	}
}

// hasVariableKey reports whether a list with variables in it has become a mapping: Compose resolves no keys.
func hasVariableKey(v any) bool {
	m, _ := v.(map[string]any)
	for key := range m {
		if strings.Contains(key, "$") {
			return true
		}
	}
	return false
}

// retype gives volumes their right type: Compose takes a short form that begins with a variable for a named
// volume before it knows the variable.
func retype(written map[string]any, volumes []types.ServiceVolumeConfig) {
	list, _ := written["volumes"].([]any)
	if len(list) != len(volumes) {
		return
	}
	for i, v := range list {
		m, ok := v.(map[string]any)
		if !ok || m["type"] == volumes[i].Type {
			continue
		}
		m["type"] = volumes[i].Type
		delete(m, "volume")
		if volumes[i].Bind != nil {
			m["bind"] = map[string]any{"create_host_path": bool(volumes[i].Bind.CreateHostPath)}
		}
	}
}

// fullBody is the model with services first.
func fullBody(model map[string]any) *yaml.Node {
	rest := map[string]any{}
	for k, v := range model {
		if k != "services" {
			rest[k] = v
		}
	}
	n := mapping("services", model["services"])
	n.Content = append(n.Content, value(rest).Content...)
	return n
}

// loadTyped loads other files as this project, with the fields that are not known.
func (s *Source) loadTyped(ctx context.Context, config types.ConfigDetails) (*types.Project, []stray, error) {
	k, err := known()
	if err != nil {
		return nil, nil, err
	}
	model, err := loader.LoadModelWithContext(ctx, config, resolved, s.called)
	if err != nil {
		return nil, nil, err
	}
	unknown := k.strays(cloned(model, verbatim))
	project, err := s.typed(model)
	return project, unknown, err
}

func (s *Source) compareFull(ctx context.Context, dir string, content []byte, want *types.Project, unknown []stray) ([]diff, error) {
	config := s.config
	config.WorkingDir = dir
	config.ConfigFiles = []types.ConfigFile{{Filename: filepath.Join(dir, meshOutput), Content: content}}
	got, strays, err := s.loadTyped(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("the flattened file does not load, so nothing is written: %w", err)
	}
	diffs := compareStrays(unknown, strays)
	names := want.ServiceNames()
	slices.Sort(names)
	for _, name := range names {
		diffs = append(diffs, compareServices(name, want.Services[name], got.Services[name])...)
	}
	for _, c := range []struct {
		field     string
		want, got any
	}{
		{"networks", want.Networks, got.Networks}, {"volumes", want.Volumes, got.Volumes},
		{"secrets", want.Secrets, got.Secrets}, {"configs", want.Configs, got.Configs},
	} {
		if !equal(c.want, c.got) {
			diffs = append(diffs, diff{field: c.field, want: c.want, got: c.got})
		}
	}
	return diffs, nil
}
