package compose

import (
	"encoding/json"
	"fmt"
	"regexp"

	"gopkg.in/yaml.v3"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// A mesh can be shared by several projects. Its planes are then a compose project of their own, whose name is the
// mesh's; ControlPlane makes its file. A project that uses them takes its own name for the namespace of its
// workloads, and each of its workloads is called <name>.<project>, so that two projects may both have a `web`.

// DefaultMesh is the name of the installed mesh where none is given.
const DefaultMesh = "composure"

// namespaceName is a name that a mesh or a project must have to be a namespace: a label of RFC 1123, section 2.1.
var namespaceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckMeshName says what is wrong with the name of a mesh to install.
func CheckMeshName(name string) error {
	if !namespaceName.MatchString(name) {
		return fmt.Errorf("mesh %q: want a name of up to 63 lower-case letters, digits and inner dashes", name)
	}
	return nil
}

// checkExternal says why a project can't use an installed mesh.
func (s *Source) checkExternal(cfg Config) error {
	if cfg.External == "" {
		return nil
	}
	if err := CheckMeshName(cfg.External); err != nil {
		return err
	}
	if !namespaceName.MatchString(s.Name) {
		return fmt.Errorf("project %s: its name would be its services' namespace: want up to 63 lower-case letters, digits and inner dashes, by -p or the file's `name`", s.Name)
	}
	switch s.Name {
	case cfg.External:
		return fmt.Errorf("project %s has the name of the installed mesh, whose planes are a compose project of this name: choose another with -p", s.Name)
	case mesh.SystemNamespace:
		return fmt.Errorf("project %s: its name would be its services' namespace, which is kept for the mesh's own planes: choose another with -p", s.Name)
	}
	return nil
}

// meshName is the mesh's: that of the project, or of the installed one.
func (e *emitter) meshName() string { return or(e.cfg.External, projectName) }

// workloadName is a workload's name in the mesh.
func (e *emitter) workloadName(w *Workload) string {
	if e.cfg.External != "" {
		return w.Name + "." + projectName
	}
	return w.Name
}

// namespace is that of a workload.
func (e *emitter) namespace(w *Workload) string {
	if e.cfg.External != "" {
		return or(w.Namespace, projectName)
	}
	return or(w.Namespace, mesh.DefaultNamespace)
}

// volumes are those that the mesh's containers of the project use.
func (e *emitter) volumes() *yaml.Node {
	if e.cfg.External != "" {
		return mapping(runVolume, mapping("external", true, "name", e.cfg.External+"_"+runVolume))
	}
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, v := range []string{runVolume, pilotVolume, citadelVolume, mixerVolume} {
		n.Content = append(n.Content, keyNode(v), &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle})
	}
	return n
}

// ControlPlane is the compose file of a mesh that projects share: its planes, and the gateways that cfg has on the given
// networks. A label remembers the flags of `meshctl install` for it. Run it with the mesh's name as that
// of the project.
func ControlPlane(cfg Config, networks []string) ([]byte, error) {
	flags := append([]string{}, cfg.flags()...)
	for _, name := range networks {
		flags = append(flags, "--network="+name)
	}
	remembered, err := json.Marshal(flags)
	if err != nil {
		return nil, err
	}
	e := &emitter{cfg: cfg, installed: [][2]string{{labels.Shared, string(remembered)}}}
	services := mapping()
	for _, p := range planes {
		add(services, p.service(), e.plane(p))
	}
	file := mapping("services", services, "volumes", e.volumes())
	if len(cfg.Ingress) > 0 {
		add(services, Gateway, e.gateway(networks))
	}
	if cfg.Egress {
		add(services, EgressGateway, e.egressGateway(networks))
	}
	own := e.ownNetworks()
	for _, j := range cfg.Joins {
		networks = append(networks, j.Network)
	}
	for _, name := range unique(networks) {
		add(own, name, mapping("external", true, "name", name))
	}
	add(file, "networks", own)
	return encode(file), nil
}
