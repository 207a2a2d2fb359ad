package compose

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// diff is a difference between the project that inject means and the one that Compose would see.
type diff struct {
	service, field string
	want, got      any
	// source is the user's field that the value was copied from; empty if it was not.
	source fieldOf
}

func (d diff) Error() string {
	path := d.field
	if d.service != "" {
		path = "services." + d.service + "." + d.field
	}
	return fmt.Sprintf("%s: want %s, got %s", path, short(d.want), short(d.got))
}

func short(v any) string {
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Pointer && !rv.IsNil() {
		v = rv.Elem().Interface()
	}
	text := fmt.Sprintf("%+v", v)
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return text
}

func diffErrors(s *Source, diffs []diff) []error {
	var errs []error
	for _, d := range diffs {
		service := or(d.source.service, d.service)
		errs = append(errs, fmt.Errorf("%s: %w", s.locate([]string{"services", service, d.field}), d))
	}
	return errs
}

// resolve makes the values that came out differently be copied: those of a replica, at first as they are written, all
// others with their variables resolved. It reports whether
// there was one that had not been tried.
func (e *emitter) resolve(diffs []diff) bool {
	found := false
	for _, d := range diffs {
		switch {
		case d.source.field == "" || e.resolved[d.source] || d.source.field == extensions && e.copied[d.source]:
			continue
		case slices.Contains(e.plan.clones(), d.source.service) && !e.copied[d.source]:
			e.copied[d.source] = true
		default:
			e.resolved[d.source] = true
		}
		found = true
	}
	return found
}

// verify compares the project with the override to what it is meant to be: the project without it, but for the
// moves. It works on Compose's own model and shares nothing with the code that wrote the override.
func (e *emitter) verify(got *types.Project) []diff {
	base := e.src.project
	var diffs []diff
	for name := range got.Services {
		if _, ok := base.Services[name]; !ok && !e.added[name] {
			diffs = append(diffs, diff{service: name, field: "", want: "no such service", got: "one"})
		}
	}
	for _, name := range e.src.services() {
		after, ok := got.Services[name]
		if !ok {
			diffs = append(diffs, diff{service: name, want: "it to stay", got: "nothing"})
			continue
		}
		diffs = append(diffs, compareServices(name, e.meant(base.Services[name], e.plan.workload(name)), after)...)
		for _, w := range e.plan.replicas(name) {
			if w.Replica > 1 {
				diffs = append(diffs, compareServices(w.Name, e.meant(base.Services[name], w), got.Services[w.Name])...)
			}
			diffs = append(diffs, e.compareSandbox(w, got.Services[w.Sandbox()])...)
		}
	}
	volumes := maps.Clone(got.Volumes)
	for _, v := range []string{runVolume, pilotVolume, citadelVolume, mixerVolume} {
		delete(volumes, v)
	}
	networks := maps.Clone(got.Networks)
	delete(networks, EgressNetwork)
	own := maps.Clone(got.Extensions)
	delete(own, headerKey)
	for _, c := range []struct {
		field     string
		want, got any
	}{
		{"name", base.Name, got.Name},
		{"networks", base.Networks, networks},
		{"volumes", base.Volumes, volumes},
		{"secrets", base.Secrets, got.Secrets},
		{"configs", base.Configs, got.Configs},
		{"models", base.Models, got.Models},
		{"x-*", base.Extensions, own},
	} {
		if !equal(c.want, c.got) {
			diffs = append(diffs, diff{field: c.field, want: c.want, got: c.got})
		}
	}
	return diffs
}

// meant is what a service of the user's is meant to be afterwards, or its workload w where it has replicas; w is nil
// for a service without one.
func (e *emitter) meant(svc types.ServiceConfig, w *Workload) types.ServiceConfig {
	if jobs := e.plan.jobsOf(e.src, svc.Name); len(jobs) > 0 {
		deps := types.DependsOnConfig{}
		maps.Copy(deps, svc.DependsOn)
		svc.DependsOn = deps
		for _, target := range jobs {
			for _, job := range e.plan.replicas(target) {
				for _, sidecar := range []string{job.Sandbox(), job.Proxy()} {
					svc.DependsOn[sidecar] = types.ServiceDependency{Condition: types.ServiceConditionCompletedSuccessfully}
				}
			}
		}
	}
	owner := w
	for _, j := range e.plan.Joiners {
		if j.Service == svc.Name {
			owner = e.plan.workload(j.Owner)
		}
	}
	if slices.Contains(e.plan.Linked, svc.Name) {
		deps := types.DependsOnConfig{}
		maps.Copy(deps, svc.DependsOn)
		svc.DependsOn = deps
		svc.Links = e.meantLinks(svc.Links)
		for _, l := range svc.Links { // what a link implies
			target, _, _ := strings.Cut(l, ":")
			if _, ok := svc.DependsOn[target]; !ok {
				svc.DependsOn[target] = types.ServiceDependency{Condition: types.ServiceConditionStarted, Restart: true, Required: true}
			}
		}
	}
	if owner == nil {
		return svc
	}
	svc.NetworkMode = types.ServicePrefix + owner.Sandbox()
	deps := types.DependsOnConfig{
		owner.Sandbox(): {Condition: types.ServiceConditionStarted, Restart: true, Required: true},
		owner.Proxy():   {Condition: types.ServiceConditionHealthy, Required: true},
	}
	maps.Copy(deps, svc.DependsOn)
	svc.DependsOn = deps
	if w == nil {
		return svc
	}
	svc = e.meantReplica(svc, w)
	own := types.Labels{labels.Mesh: e.src.Name, labels.Workload: w.Name, labels.Role: string(mesh.RoleApp)}
	if e.cfg.External != "" {
		own[labels.Mesh], own[labels.Workload] = e.cfg.External, w.Name+"."+e.src.Name
	}
	maps.Copy(own, svc.Labels)
	svc.Labels = own
	svc.Ports, svc.Expose, svc.Networks, svc.MacAddress = nil, nil, nil, ""
	svc.Hostname, svc.DomainName, svc.ExtraHosts = "", "", nil
	svc.DNS, svc.DNSSearch, svc.DNSOpts = nil, nil, nil
	svc.Links, svc.ExternalLinks = nil, nil
	svc.Sysctls = maps.Clone(svc.Sysctls)
	maps.DeleteFunc(svc.Sysctls, func(k, _ string) bool { return isNet(k) })
	return svc
}

func isNet(sysctl string) bool { return strings.HasPrefix(sysctl, "net.") }

func (e *emitter) meantLinks(links []string) []string {
	out := slices.Clone(links)
	for i, l := range out {
		parts := strings.SplitN(l, ":", 2)
		if e.plan.workload(parts[0]) != nil {
			out[i] = sandboxOf(parts[0]) + ":" + parts[len(parts)-1]
		}
	}
	return out
}

// compareSandbox compares a sandbox with the service whose place it takes.
func (e *emitter) compareSandbox(w *Workload, got types.ServiceConfig) []diff {
	app := e.src.project.Services[w.Service]
	net := maps.Clone(app.Sysctls)
	maps.DeleteFunc(net, func(k, _ string) bool { return !isNet(k) })
	var diffs []diff
	for _, c := range []struct {
		field     string
		want, got any
	}{
		{"ports", publishable(app.Ports, w.Replica), got.Ports},
		{"expose", app.Expose, got.Expose},
		{"hostname", app.Hostname, got.Hostname},
		{"domainname", app.DomainName, got.DomainName},
		{"dns", app.DNS, got.DNS},
		{"dns_search", app.DNSSearch, got.DNSSearch},
		{"dns_opt", app.DNSOpts, got.DNSOpts},
		{"extra_hosts", app.ExtraHosts, got.ExtraHosts},
		{"links", e.meantLinks(app.Links), got.Links},
		{"external_links", app.ExternalLinks, got.ExternalLinks},
		{"mac_address", app.MacAddress, got.MacAddress},
		{"networks", withoutAliases(app.Networks), withoutAliases(got.Networks)},
		{"sysctls", net, got.Sysctls},
		{"profiles", app.Profiles, got.Profiles},
		{"userns_mode", app.UserNSMode, got.UserNSMode},
	} {
		if !equal(c.want, c.got) {
			diffs = append(diffs, diff{w.Sandbox(), c.field, c.want, c.got, fieldOf{w.Service, c.field}})
		}
	}
	container := or(app.ContainerName, fmt.Sprintf("%s-%s-%d", e.src.Name, w.Service, w.Replica))
	for name, n := range app.Networks {
		want := []string{container}
		if n == nil || n.ServiceNameAliasEnabled() {
			want = append(want, w.Service)
		}
		if n != nil {
			want = append(want, n.Aliases...)
		}
		var have []string
		if g := got.Networks[name]; g != nil {
			have = g.Aliases
		}
		for _, alias := range want {
			if !slices.Contains(have, alias) {
				diffs = append(diffs, diff{w.Sandbox(), "networks." + name + ".aliases", alias, have, fieldOf{w.Service, "networks"}})
			}
		}
	}
	return diffs
}

func withoutAliases(networks map[string]*types.ServiceNetworkConfig) map[string]types.ServiceNetworkConfig {
	out := map[string]types.ServiceNetworkConfig{}
	for name, n := range networks {
		var settings types.ServiceNetworkConfig
		if n != nil {
			settings = *n
		}
		settings.Aliases = nil
		out[name] = settings
	}
	return out
}

// compareServices compares all fields of a service. pre_start hooks are not compared: they inherit their
// service's fields, networks too, and follow them.
func compareServices(name string, want, got types.ServiceConfig) []diff {
	var diffs []diff
	var walk func(want, got reflect.Value)
	walk = func(want, got reflect.Value) {
		for i := range want.NumField() {
			f := want.Type().Field(i)
			field, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			switch {
			case f.Anonymous:
				walk(want.Field(i), got.Field(i))
			case field == "pre_start":
			case !equal(want.Field(i).Interface(), got.Field(i).Interface()):
				diffs = append(diffs, diff{service: name, field: field, want: want.Field(i).Interface(), got: got.Field(i).Interface(),
					source: fieldOf{name, field}})
			}
		}
	}
	walk(reflect.ValueOf(want), reflect.ValueOf(got))
	return diffs
}

// equal is deep equality that takes nil and empty for the same.
func equal(a, b any) bool {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	switch va.Kind() {
	case reflect.Map, reflect.Slice:
		if va.Len() == 0 && vb.Len() == 0 {
			return true
		}
	}
	return reflect.DeepEqual(a, b)
}
