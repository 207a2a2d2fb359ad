package pilot

import (
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/mesh"
)

// The read-only resources of core v1 that are made of the facts: what a person or a tool that knows Kubernetes looks
// for first.
var (
	podsResource      = schema.GroupResource{Resource: "pods"}
	servicesResource  = schema.GroupResource{Resource: "services"}
	endpointsResource = schema.GroupResource{Resource: "endpoints"}
)

func coreViews() []apiserver.View {
	return []apiserver.View{
		{Kind: "Pod", Plural: "pods", Singular: "pod", ShortNames: []string{"po"}, Columns: []apiserver.ViewColumn{
			{Name: "Ready", Cell: readyCell}, {Name: "Status", Cell: textCell("status", "phase")}, {Name: "IP", Cell: textCell("status", "podIP")},
		}},
		{Kind: "Service", Plural: "services", Singular: "service", ShortNames: []string{"svc"}, Columns: []apiserver.ViewColumn{
			{Name: "Type", Cell: textCell("spec", "type")}, {Name: "Port(s)", Cell: portsCell},
		}},
		{Kind: "Endpoints", Plural: "endpoints", Singular: "endpoints", ShortNames: []string{"ep"}, Columns: []apiserver.ViewColumn{
			{Name: "Endpoints", Cell: endpointsCell},
		}},
	}
}

func textCell(path ...string) func(*unstructured.Unstructured) any {
	return func(u *unstructured.Unstructured) any {
		text, _, _ := unstructured.NestedString(u.Object, path...) // made below
		return text
	}
}

func readyCell(u *unstructured.Unstructured) any {
	for _, c := range list(u, "status", "conditions") {
		if c["type"] == "Ready" && c["status"] == "True" {
			return "1/1"
		}
	}
	return "0/1"
}

func portsCell(u *unstructured.Unstructured) any {
	var cells []string
	for _, p := range list(u, "spec", "ports") {
		cells = append(cells, strconv.FormatInt(p["port"].(int64), 10)+"/"+p["protocol"].(string))
	}
	if cells == nil {
		return "<none>"
	}
	return strings.Join(cells, ",")
}

func endpointsCell(u *unstructured.Unstructured) any {
	var cells []string
	for _, subset := range list(u, "subsets") {
		addresses, _, _ := unstructured.NestedSlice(subset, "addresses") // made below
		ports, _, _ := unstructured.NestedSlice(subset, "ports")
		for _, a := range addresses {
			ip := a.(map[string]any)["ip"].(string)
			if len(ports) == 0 {
				cells = append(cells, ip)
			}
			for _, p := range ports {
				cells = append(cells, ip+":"+strconv.FormatInt(p.(map[string]any)["port"].(int64), 10))
			}
		}
	}
	if cells == nil {
		return "<none>"
	}
	return strings.Join(cells, ",")
}

func list(u *unstructured.Unstructured, path ...string) []map[string]any {
	items, _, _ := unstructured.NestedSlice(u.Object, path...) // made below
	var maps []map[string]any
	for _, i := range items {
		maps = append(maps, i.(map[string]any))
	}
	return maps
}

// core keeps the core resources true to the facts once somebody has asked for them: in a big mesh they are most of what
// pilot would hold.
type core struct {
	store *apiserver.Store
	log   *slog.Logger

	mu    sync.Mutex
	facts *mesh.Facts // that store is made of; nil while nobody has asked
}

// asked is called before somebody reads the core resources.
func (c *core) asked(facts func() *mesh.Facts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update(facts())
}

// received is called when there are new facts, for those who watch.
func (c *core) received(facts func() *mesh.Facts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.facts != nil {
		c.update(facts())
	}
}

func (c *core) update(facts *mesh.Facts) {
	if facts == nil || c.facts == facts {
		return
	}
	c.facts = facts
	if err := updateCore(c.store, facts); err != nil {
		c.log.Error("update services, endpoints and pods", "error", err)
	}
}

// updateCore makes the core resources those of facts.
func updateCore(store *apiserver.Store, facts *mesh.Facts) error {
	var pods, services, endpoints []*unstructured.Unstructured
	behind := map[[2]string][]*mesh.Workload{} // by namespace and service
	for i := range facts.Workloads {
		w := &facts.Workloads[i]
		pods = append(pods, podOf(w))
		for _, s := range w.Services {
			key := [2]string{w.Namespace, s}
			behind[key] = append(behind[key], w)
		}
	}
	for key, workloads := range behind {
		services = append(services, serviceOf(key[0], key[1], workloads))
		endpoints = append(endpoints, endpointsOf(key[0], key[1], workloads))
	}
	for _, r := range []struct {
		resource schema.GroupResource
		objects  []*unstructured.Unstructured
	}{{podsResource, pods}, {servicesResource, services}, {endpointsResource, endpoints}} {
		if err := store.Replace(r.resource, r.objects); err != nil {
			return err
		}
	}
	return nil
}

func coreObject(kind, namespace, name string, labels map[string]string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": kind}}
	u.SetNamespace(namespace)
	u.SetName(name)
	u.SetLabels(labels)
	return u
}

func ready(w *mesh.Workload) bool { return w.Running && w.Health != "unhealthy" }

func podOf(w *mesh.Workload) *unstructured.Unstructured {
	u := coreObject("Pod", w.Namespace, w.Name, w.Labels)
	phase, condition := "Pending", "False"
	if w.Running {
		phase = "Running"
	}
	if ready(w) {
		condition = "True"
	}
	status := map[string]any{"phase": phase, "conditions": []any{map[string]any{"type": "Ready", "status": condition}}}
	if ips := ipsOf(w); len(ips) > 0 {
		var all []any
		for _, ip := range ips {
			all = append(all, map[string]any{"ip": ip})
		}
		status["podIP"], status["podIPs"] = ips[0], all
	}
	u.Object["status"] = status
	u.Object["spec"] = map[string]any{
		"serviceAccountName": w.ServiceAccount,
		"containers":         []any{map[string]any{"name": w.CanonicalService(), "ports": portList("containerPort", []*mesh.Workload{w})}},
	}
	return u
}

func serviceOf(namespace, name string, workloads []*mesh.Workload) *unstructured.Unstructured {
	u := coreObject("Service", namespace, name, nil)
	u.Object["spec"] = map[string]any{"type": "ClusterIP", "clusterIP": "None", "ports": portList("port", workloads)}
	return u
}

func endpointsOf(namespace, name string, workloads []*mesh.Workload) *unstructured.Unstructured {
	u := coreObject("Endpoints", namespace, name, nil)
	var subsets []any
	for _, w := range workloads {
		field := "notReadyAddresses"
		if ready(w) {
			field = "addresses"
		}
		var addresses []any
		for _, ip := range ipsOf(w) {
			addresses = append(addresses, map[string]any{
				"ip": ip, "targetRef": map[string]any{"kind": "Pod", "name": w.Name, "namespace": w.Namespace},
			})
		}
		if addresses != nil {
			subsets = append(subsets, map[string]any{field: addresses, "ports": portList("port", []*mesh.Workload{w})})
		}
	}
	if subsets != nil {
		u.Object["subsets"] = subsets
	}
	return u
}

func ipsOf(w *mesh.Workload) []string {
	var ips []string
	for _, a := range w.Addresses {
		for _, ip := range []string{a.IPv4, a.IPv6} {
			if ip != "" {
				ips = append(ips, ip)
			}
		}
	}
	return ips
}

// portList is the declared ports, each once, as a list of Kubernetes ports.
func portList(field string, workloads []*mesh.Workload) []any {
	protocols := map[uint16]mesh.Protocol{}
	for _, w := range workloads {
		for _, p := range w.Ports {
			protocols[p.Number] = p.Protocol
		}
	}
	ports := []any{}
	for _, n := range slices.Sorted(maps.Keys(protocols)) {
		port := map[string]any{field: int64(n), "protocol": "TCP"}
		if p := protocols[n]; p != "" {
			port["name"] = string(p) + "-" + strconv.Itoa(int(n))
		}
		ports = append(ports, port)
	}
	return ports
}
