package compose

import (
	"context"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"golang.org/x/sync/errgroup"
)

// partSize is how many of the user's services are merged at a time. Compose's loader takes time in the product of
// services and reset fields, and one core only.
const partSize = 25

// merge loads the project together with an override as Compose does: the override's own bytes over the model of
// the files before it. It goes part by part, and the parts come together for the checks of the whole.
func (s *Source) merge(ctx context.Context, override []byte, clones []string) (map[string]any, error) {
	blocks, rest := split(override)
	var extending strings.Builder
	extending.WriteString(bodyStart)
	for _, name := range clones {
		extending.WriteString(blocks[name])
		delete(blocks, name)
	}
	names := slices.Collect(slices.Chunk(s.services(), partSize))
	parts := make([]part, len(names))
	seen := map[string]bool{}
	for i := range parts {
		parts[i] = s.part(names[i], blocks, seen)
	}
	last := &parts[len(parts)-1] // takes what belongs to no service of the user's, and all that is no service
	last.model = maps.Clone(s.model)
	for _, n := range slices.Sorted(maps.Keys(blocks)) {
		last.content += blocks[n]
	}
	last.content += rest
	models := make([]map[string]any, len(parts))
	options := casts(append(s.text(), override)...)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range parts {
		group.Go(func() (err error) {
			models[i], err = s.mergePart(ctx, &parts[i], options)
			return err
		})
	}
	var replicas map[string]any
	group.Go(func() (err error) {
		replicas, err = s.extend(ctx, extending.String())
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	whole := models[len(models)-1]
	services := maps.Clone(replicas)
	for _, m := range models {
		merged, _ := m["services"].(map[string]any)
		maps.Copy(services, merged)
	}
	whole["services"] = services
	return whole, nil
}

// extend loads the services that extend the user's: they need nothing but the files that they name.
func (s *Source) extend(ctx context.Context, content string) (map[string]any, error) {
	if content == bodyStart {
		return map[string]any{}, nil
	}
	config := types.ConfigDetails{
		WorkingDir:  s.config.WorkingDir,
		Environment: maps.Clone(s.config.Environment), // the loader writes to it
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(s.Dir, meshOutput), Content: []byte(content)}},
	}
	model, err := loader.LoadModelWithContext(ctx, config, resolved, s.called)
	if err != nil {
		return nil, err
	}
	services, _ := model["services"].(map[string]any)
	return services, nil
}

// part is a part of the override and what it is merged over.
type part struct {
	model    map[string]any            // without its services
	services map[string]map[string]any // the fields that the override names, of the services that it names
	content  string
}

// part takes the blocks of some services out of blocks.
func (s *Source) part(names []string, blocks map[string]string, seen map[string]bool) part {
	p := part{services: map[string]map[string]any{}, model: map[string]any{}}
	var content strings.Builder
	content.WriteString(bodyStart)
	for _, name := range names {
		p.services[name] = nil
		if block, ok := blocks[name]; ok {
			p.services[name] = s.named(name, block)
			content.WriteString(block)
		}
		for _, n := range []string{sandboxOf(name), proxyOf(name)} {
			if block, ok := blocks[n]; ok {
				content.WriteString(novel(block, seen))
			}
			delete(blocks, n)
		}
		delete(blocks, name)
	}
	p.content = content.String()
	return p
}

// named are the fields of a service of the user's that its block in the override names: merging touches no other.
func (s *Source) named(service, block string) map[string]any {
	fields := map[string]any{}
	for line := range strings.Lines(block) {
		if key, ok := strings.CutPrefix(line, "    "); ok && key[0] != ' ' {
			key, _, _ = strings.Cut(key, ":")
			if v, ok := s.modelService(service)[key]; ok {
				fields[key] = v
			} else {
				fields[key] = nil
			}
		}
	}
	return fields
}

func (s *Source) modelService(name string) map[string]any {
	services, _ := s.model["services"].(map[string]any)
	service, _ := services[name].(map[string]any)
	return service
}

// split takes a file that encode wrote apart: the text of each service, by name, and what follows services. A
// service begins at an indent of two; no scalar is longer than its line.
func split(content []byte) (services map[string]string, rest string) {
	services = map[string]string{}
	_, body, _ := strings.Cut(string(content), "\n"+bodyStart)
	name, start := "", 0
	for at := 0; at < len(body); {
		end := at + strings.IndexByte(body[at:], '\n') + 1
		line := body[at:end]
		if !strings.HasPrefix(line, "   ") {
			if name != "" {
				services[name] = body[start:at]
			}
			if !strings.HasPrefix(line, "  ") {
				return services, body[at:]
			}
			name, start = strings.Trim(strings.TrimSpace(line), `":`), at
		}
		at = end
	}
	return services, ""
}

// constants are fields of the services that inject adds which hold nothing of the user's; partly are those in which
// some entries do not.
var (
	constants = []string{"attach", "cap_add", "cap_drop", "environment", "healthcheck", "pull_policy", "read_only",
		"security_opt", "stop_grace_period", "tmpfs", "user", "volumes"}
	partly = []string{"depends_on", "labels"}
)

// novel leaves the constants out of the text of a service that inject adds where they read exactly as in one
// before: Compose takes them there or nowhere, and reading them again is most of the work in a big project.
func novel(block string, seen map[string]bool) string {
	name, rest, _ := strings.Cut(block, "\n")
	kept := []string{name}
	for len(rest) > 0 {
		end := fieldEnd(rest)
		field := rest[:end-1]
		rest = rest[end:]
		key, _, _ := strings.Cut(strings.TrimSpace(field), ":")
		switch {
		case seen[field] && slices.Contains(constants, key):
			continue
		case slices.Contains(partly, key):
			lines := strings.Split(field, "\n")
			lines = slices.DeleteFunc(lines, func(line string) bool {
				known := seen[line]
				seen[line] = true
				return known && strings.HasPrefix(line, "      ")
			})
			if len(lines) == 1 {
				continue
			}
			field = strings.Join(lines, "\n")
		default:
			seen[field] = true
		}
		kept = append(kept, field)
	}
	return strings.Join(kept, "\n") + "\n"
}

// fieldEnd is the length of the first line of a service's text with the lines that are indented below it.
func fieldEnd(block string) int {
	end := strings.IndexByte(block, '\n') + 1
	for strings.HasPrefix(block[end:], "      ") {
		end += strings.IndexByte(block[end:], '\n') + 1
	}
	return end
}

// mergePart merges the override's text over a part of the model, and gives the services their other fields back.
func (s *Source) mergePart(ctx context.Context, p *part, options func(*loader.Options)) (map[string]any, error) {
	services := map[string]any{}
	for name, fields := range p.services {
		if fields == nil {
			continue
		}
		base := map[string]any{"image": "any"} // a service without anything is none
		for k, v := range fields {
			if v != nil {
				base[k] = v
			}
		}
		services[name] = base
	}
	p.model["services"] = services
	base := cloned(p.model, escape) // it is resolved a second time
	withoutEnvironment(base)
	config := types.ConfigDetails{
		WorkingDir:  s.config.WorkingDir,
		Environment: maps.Clone(s.config.Environment), // the loader writes to it
		ConfigFiles: []types.ConfigFile{
			{Filename: s.Files[0], Config: base},
			{Filename: filepath.Join(s.Dir, meshOutput), Content: []byte(p.content)},
		},
	}
	model := map[string]any{"services": map[string]any{}}
	if p.content != bodyStart { // else the override has nothing to say to any of them
		var err error
		if model, err = loader.LoadModelWithContext(ctx, config, resolved, options, s.called, func(o *loader.Options) {
			o.ResolvePaths = false // they are resolved, and the override has none
		}); err != nil {
			return nil, err
		}
	}
	merged, _ := model["services"].(map[string]any)
	for name, fields := range p.services {
		whole := cloned(s.modelService(name), verbatim)
		after, _ := merged[name].(map[string]any)
		for k := range fields {
			delete(whole, k)
			if v, ok := after[k]; ok {
				whole[k] = v
			}
		}
		merged[name] = whole
	}
	return model, nil
}

// cloned copies a model with every string, but no key, mapped by text.
func cloned(model map[string]any, text func(string) string) map[string]any {
	var copied func(any) any
	copied = func(v any) any {
		switch v := v.(type) {
		case string:
			return text(v)
		case []any:
			out := make([]any, len(v))
			for i, e := range v {
				out[i] = copied(e)
			}
			return out
		case map[string]any:
			out := make(map[string]any, len(v))
			for k, e := range v {
				out[k] = copied(e)
			}
			return out
		}
		return v
	}
	out, _ := copied(model).(map[string]any)
	return out
}

func verbatim(s string) string { return s }
