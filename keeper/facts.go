package keeper

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// Scope says which mesh facts are about.
type Scope struct {
	Mesh        string
	TrustDomain string
}

// Build makes facts of what the engine has told. It has no effects, and equal input in any order gives equal
// facts. A problem names a container and what is wrong with it; the facts do without it.
func Build(s Scope, containers []Container, networks []mesh.Network) (mesh.Facts, []string) {
	b := builder{scope: s, networks: map[string]mesh.Network{}, used: map[string]bool{}}
	for _, n := range networks {
		b.networks[n.ID] = n
	}
	groups, neighbours := b.sort(containers)
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		if w, ok := b.workload(name, groups[name]); ok {
			b.workloads = append(b.workloads, w)
		}
	}
	for _, c := range neighbours {
		b.workloads = append(b.workloads, b.neighbour(c))
	}
	return b.facts(), b.problems
}

type builder struct {
	scope     Scope
	networks  map[string]mesh.Network // by id
	used      map[string]bool         // ids of networks that a workload is in
	workloads []mesh.Workload
	problems  []string
}

// group is what one workload consists of: in each role its best container, nil where there is none.
type group struct{ app, sandbox, proxy, gateway *Container }

// sort puts containers in the order of their names, those of a workload together by role.
func (b *builder) sort(containers []Container) (map[string]*group, []*Container) {
	sorted := slices.Clone(containers)
	slices.SortFunc(sorted, func(x, y Container) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.ID, y.ID))
	})
	groups := map[string]*group{}
	var neighbours []*Container
	for i := range sorted {
		c := &sorted[i]
		if c.Labels[labelOneOff] == "True" {
			continue // compose run: nobody dials it
		}
		m, meshed := c.Labels[labels.Mesh]
		if !meshed {
			neighbours = append(neighbours, c)
			continue
		}
		if m != b.scope.Mesh {
			continue
		}
		b.place(groups, c)
	}
	return groups, neighbours
}

func (b *builder) place(groups map[string]*group, c *Container) {
	role := mesh.Role(c.Labels[labels.Role])
	var slot func(*group) **Container
	switch role {
	case mesh.RoleApp:
		slot = func(g *group) **Container { return &g.app }
	case mesh.RoleSandbox:
		slot = func(g *group) **Container { return &g.sandbox }
	case mesh.RoleProxy:
		slot = func(g *group) **Container { return &g.proxy }
	case mesh.RoleGateway:
		slot = func(g *group) **Container { return &g.gateway }
	case mesh.RoleKeeper, mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer:
		return
	default:
		b.problem(c, "label %s is %q, want a role of the mesh", labels.Role, role)
		return
	}
	name := c.Labels[labels.Workload]
	if name == "" {
		b.problem(c, "label %s is missing", labels.Workload)
		return
	}
	g := groups[name]
	if g == nil {
		g = &group{}
		groups[name] = g
	}
	if old := slot(g); *old == nil || better(c, *old) {
		*old = c
	}
}

// better chooses between two containers of one workload in one role, as there are while it is replaced: the one
// that runs, then the newer.
func better(c, than *Container) bool {
	if c.Running != than.Running {
		return c.Running
	}
	return c.Created.After(than.Created)
}

func (b *builder) problem(c *Container, format string, args ...any) {
	b.problems = append(b.problems, fmt.Sprintf("container %s: ", c.Name)+fmt.Sprintf(format, args...))
}

func (b *builder) workload(name string, g *group) (mesh.Workload, bool) {
	w := mesh.Workload{Name: name, Role: mesh.RoleApp}
	switch {
	case g.gateway != nil && (g.app != nil || g.sandbox != nil || g.proxy != nil):
		b.problem(g.gateway, "workload %s is a gateway and an application at once", name)
		return w, false
	case g.gateway != nil:
		w.Role = mesh.RoleGateway
		b.fill(&w, g.gateway, g.gateway, g.gateway)
		w.Running, w.Health = g.gateway.Running, g.gateway.Health
	case g.sandbox == nil:
		b.problem(cmp.Or(g.app, g.proxy), "workload %s has no sandbox", name)
		return w, false
	default:
		// The sandbox says the identity too: while there is no proxy the workload is dialled as what it is, and not
		// in plain text.
		b.fill(&w, g.sandbox, cmp.Or(g.proxy, g.sandbox), g.app, g.sandbox, g.proxy)
		if w.Identity == "" {
			return w, false // fill has said why
		}
		w.Meshed = true
		if g.app != nil {
			w.Running, w.Health = g.app.Running && g.sandbox.Running, g.app.Health
		}
	}
	return w, true
}

// fill takes the workload's addresses from the owner of its network namespace, its identity from the holder of
// its certificate, and what inject has labelled from the first of sources that says it.
func (b *builder) fill(w *mesh.Workload, owner, holder *Container, sources ...*Container) {
	sources = slices.DeleteFunc(sources, func(c *Container) bool { return c == nil })
	say := func(key string) string {
		for _, c := range sources {
			if v := c.Labels[key]; v != "" {
				return v
			}
		}
		return ""
	}
	w.Namespace = cmp.Or(say(labels.Namespace), mesh.DefaultNamespace)
	w.ServiceAccount = cmp.Or(say(labels.ServiceAccount), w.Name)
	if holder != nil {
		id, err := workloadIdentity(b.scope.TrustDomain, holder.Labels)
		if err != nil {
			b.problem(holder, "%v", err)
		} else {
			w.Identity = id.id.String()
			w.Namespace, w.ServiceAccount = id.namespace, id.account
		}
	}
	w.Services = serviceList(say(labels.Services), w.Name)
	for _, c := range slices.Backward(sources) {
		addSubsetLabels(w, c)
	}
	w.Addresses = b.addresses(owner)
	w.Ports = b.ports(owner, say(labels.Ports), sources)
	w.PlainPorts = b.plainPorts(owner, say(labels.ExcludeInboundPorts))
}

func serviceList(label, fallback string) []string {
	var list []string
	for s := range strings.SplitSeq(label, ",") {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	if list == nil {
		return []string{fallback}
	}
	return list
}

func addSubsetLabels(w *mesh.Workload, c *Container) {
	for k, v := range c.Labels {
		if name, ok := strings.CutPrefix(k, labels.SubsetPrefix); ok && name != "" {
			if w.Labels == nil {
				w.Labels = map[string]string{}
			}
			w.Labels[name] = v
		}
	}
}

// neighbour is a container of a compose project with a part in the mesh that is not in the mesh itself.
func (b *builder) neighbour(c *Container) mesh.Workload {
	service := cmp.Or(c.Labels[labelService], c.Name)
	w := mesh.Workload{
		Name: service, Role: mesh.RoleApp, Running: c.Running, Health: c.Health,
		Namespace:      cmp.Or(c.Labels[labels.Namespace], mesh.DefaultNamespace),
		ServiceAccount: cmp.Or(c.Labels[labels.ServiceAccount], service),
	}
	if n := c.Labels[labelNumber]; n != "" && n != "1" {
		w.Name = service + "-" + n
	}
	if p := c.Labels[labelProject]; p != b.scope.Mesh { // one of several that share the mesh: named as inject names workloads
		w.Name += "." + p
		w.Namespace = cmp.Or(c.Labels[labels.Namespace], p)
	}
	var aliases []string
	for _, ep := range c.Endpoints {
		aliases = append(aliases, ep.Aliases...)
	}
	slices.Sort(aliases)
	canonical := cmp.Or(c.Labels[labels.Service], service)
	w.Services = serviceList(strings.Join(append([]string{canonical, service}, aliases...), ","), service)
	if v := c.Labels[labels.Version]; v != "" {
		w.Labels = map[string]string{"version": v}
	}
	w.Addresses = b.addresses(c)
	w.Ports = b.ports(c, "", []*Container{c})
	return w
}

func (b *builder) addresses(c *Container) []mesh.Address {
	var list []mesh.Address
	for _, ep := range c.Endpoints {
		n, ok := b.networks[ep.NetworkID]
		if !ok || ep.IPv4 == "" && ep.IPv6 == "" {
			continue
		}
		b.used[n.ID] = true
		list = append(list, mesh.Address{Network: n.Name, IPv4: ep.IPv4, IPv6: ep.IPv6})
	}
	slices.SortFunc(list, func(x, y mesh.Address) int { return strings.Compare(x.Network, y.Network) })
	return list
}

// ports joins what inject has labelled, what the images expose and what the owner of the namespace publishes.
func (b *builder) ports(owner *Container, label string, sources []*Container) []mesh.Port {
	known := map[uint16]*mesh.Port{}
	at := func(n uint16) *mesh.Port {
		if known[n] == nil {
			known[n] = &mesh.Port{Number: n}
		}
		return known[n]
	}
	for item := range strings.SplitSeq(label, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		number, protocol, _ := strings.Cut(item, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			b.problem(owner, "label %s: %q, want <port from 1 to 65535>[/<protocol>]", labels.Ports, item)
			continue
		}
		at(uint16(n)).Protocol = mesh.Protocol(strings.ToLower(protocol))
	}
	for _, c := range sources {
		for _, n := range c.Exposed {
			at(n)
		}
	}
	for n, hosts := range owner.Published {
		at(n).Published = hosts
	}
	var list []mesh.Port
	for _, n := range slices.Sorted(maps.Keys(known)) {
		list = append(list, *known[n])
	}
	return list
}

func (b *builder) plainPorts(owner *Container, label string) (list []uint16) {
	for item := range strings.SplitSeq(label, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		n, err := strconv.ParseUint(item, 10, 16)
		if err != nil || n == 0 {
			b.problem(owner, "label %s: %q, want a port from 1 to 65535", labels.ExcludeInboundPorts, item)
			continue
		}
		list = append(list, uint16(n))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// facts sorts, and drops a workload whose name another has: names must be unique for what refers to them.
func (b *builder) facts() mesh.Facts {
	slices.SortStableFunc(b.workloads, func(x, y mesh.Workload) int { return strings.Compare(x.Name, y.Name) })
	f := mesh.Facts{Project: b.scope.Mesh, Workloads: []mesh.Workload{}, Networks: []mesh.Network{}}
	for _, w := range b.workloads {
		if n := len(f.Workloads); n > 0 && f.Workloads[n-1].Name == w.Name {
			b.problems = append(b.problems, fmt.Sprintf("workload %s: there are two of this name; the mesh sees the first only", w.Name))
			continue
		}
		f.Workloads = append(f.Workloads, w)
	}
	for id := range b.used {
		f.Networks = append(f.Networks, b.networks[id])
	}
	slices.SortFunc(f.Networks, func(x, y mesh.Network) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.ID, y.ID))
	})
	return f
}
