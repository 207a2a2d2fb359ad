package explain

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
)

// systemNamespaces are Kubernetes' own, whose Services are nobody's to name.
var systemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

func (k *kubeObject) String() string {
	return strings.ToLower(k.Kind) + "/" + k.Metadata.Namespace + "/" + k.Metadata.Name
}

// checkPorts finds ports of a Service that say no protocol. Those of one for a name outside are no better off with tcp,
// since there is no address to know them by.
func (k *kubeObject) checkPorts() (problems []analysis.Problem) {
	if slices.Contains(systemNamespaces, k.Metadata.Namespace) {
		return nil
	}
	for i, p := range k.Spec.Ports {
		code, detail := analysis.PortNameNotConventional, "neither the name nor appProtocol of port %d says a protocol: it is found out from the first bytes"
		if k.Spec.Type == "ExternalName" {
			code, detail = analysis.ExternalNamePort, "port %d is one of bytes, or of a protocol that nothing says: what is sent there may be taken for another host's, since this Service has no address"
		}
		if protocol := protocolOf(p); protocol == mesh.ProtocolAuto || code == analysis.ExternalNamePort && protocol == mesh.ProtocolTCP {
			problems = append(problems, analysis.Problem{Code: code, Resource: k.String(), Path: fmt.Sprintf("spec.ports[%d].name", i), Detail: fmt.Sprintf(detail, p.Port)})
		}
	}
	return problems
}

// sidecar is the name of the container, by Istio's convention, that is no application's.
const sidecar = "istio-proxy"

// checkUser finds applications that run as the user whose connections the sidecar lets pass.
func (k *kubeObject) checkUser() (problems []analysis.Problem) {
	spec := "spec"
	if k.Kind != "Pod" {
		spec = "spec.template.spec"
	}
	check := func(path string, c securityContext) {
		if c.RunAsUser != nil && *c.RunAsUser == mesh.UIDProxy {
			problems = append(problems, analysis.Problem{Code: analysis.ReservedUser, Resource: k.String(), Path: path + ".securityContext.runAsUser",
				Detail: fmt.Sprintf("user %d is the proxy's: what it sends passes the sidecar by", mesh.UIDProxy)})
		}
	}
	check(spec, k.Spec.SecurityContext)
	for i, c := range k.Spec.Containers {
		if c.Name != sidecar {
			check(fmt.Sprintf("%s.containers[%d]", spec, i), c.SecurityContext)
		}
	}
	return problems
}

// inject is the annotation, or label, that keeps a pod out of the mesh where it is false.
const inject = "sidecar.istio.io/inject"

func (k *kubeObject) meshed() bool {
	return k.Metadata.Annotations[inject] != "false" && k.Metadata.Labels[inject] != "false"
}

// checkWorkloads finds Deployments and pods that run as the proxy, and those that several Services make contradictory ports
// of.
func (f *Files) checkWorkloads() []analysis.Problem {
	var problems []analysis.Problem
	for i := range f.pods {
		p := &f.pods[i]
		if !p.meshed() {
			continue
		}
		problems = append(problems, p.checkUser()...)
		resource := p.String()
		services := f.servicesOf(p)
		protocols, targets := map[int]map[string]string{}, map[string]map[int]string{} // to the first Service that says so
		for _, s := range services {
			for j := range s.Spec.Ports {
				port := &s.Spec.Ports[j]
				note(protocols, port.Port, string(protocolOf(*port)), s.Metadata.Name)
				note(targets, targetOf(port), port.Port, s.Metadata.Name)
			}
		}
		for _, n := range slices.Sorted(maps.Keys(protocols)) {
			if said := protocols[n]; len(said) > 1 {
				problems = append(problems, analysis.Problem{Code: analysis.SeveralServices, Resource: resource, Path: "metadata.labels",
					Detail: fmt.Sprintf("Services make port %d of it different protocols: %s", n, contradiction(said))})
			}
		}
		for _, target := range slices.Sorted(maps.Keys(targets)) {
			if said := targets[target]; len(said) > 1 {
				problems = append(problems, analysis.Problem{Code: analysis.ConflictingPorts, Resource: resource, Path: "metadata.labels",
					Detail: fmt.Sprintf("Services have different ports for its port %s: %s", target, contradiction(said))})
			}
		}
	}
	return problems
}

func note[A, B comparable](said map[A]map[B]string, about A, what B, who string) {
	if said[about] == nil {
		said[about] = map[B]string{}
	}
	if said[about][what] == "" {
		said[about][what] = who
	}
}

// contradiction is who says what.
func contradiction[B comparable](said map[B]string) string {
	var parts []string
	for what, who := range said {
		text := fmt.Sprint(what)
		if text == string(mesh.ProtocolAuto) {
			text = "none"
		}
		parts = append(parts, text+" by "+who)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// servicesOf are the Services that select a pod.
func (f *Files) servicesOf(p *kubeObject) []*kubeObject {
	var found []*kubeObject
	for i := range f.services {
		s := &f.services[i]
		var selector map[string]string
		if len(s.Spec.Selector) == 0 || json.Unmarshal(s.Spec.Selector, &selector) != nil {
			continue // members says what is wrong with it
		}
		if len(selector) > 0 && s.Metadata.Namespace == p.Metadata.Namespace && mesh.Selects(selector, p.Metadata.Labels) {
			found = append(found, s)
		}
	}
	return found
}

// targetOf is the port behind a Service's port: a number, or the name of a port of the pod.
func targetOf(p *kubePort) string {
	switch t := p.TargetPort.(type) {
	case float64:
		return strconv.Itoa(int(t))
	case string:
		return t
	}
	return strconv.Itoa(p.Port)
}
