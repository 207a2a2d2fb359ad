package explain

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	policies "github.com/composure-mesh/composure/mixer/compile"
	"github.com/composure-mesh/composure/pilot/compile"
)

// Files are what a mesh would be made of: the mesh's own objects, and Kubernetes' that tell which workloads there are.
// Services say the names and the ports. Who answers them say Endpoints, else Pods, else Deployments and their like by
// the labels of their template; a service of which none of these is given is taken to have one workload for itself and
// for each subset.
type Files struct {
	// Namespace is that of what names none; empty is Kubernetes' default.
	Namespace string

	intent []*api.Object
	// invalid are networking objects that can be read and are refused: what else is wrong with them, and with what names
	// them, is told besides.
	invalid   []*api.Object
	services  []kubeObject
	endpoints map[string]kubeObject // by namespace/name
	pods      []kubeObject          // and templates of pods
	// namespaces are those that there is an object of.
	namespaces []string
}

// kubeObject is what is read of a Kubernetes object, of whatever kind it is.
type kubeObject struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name, Namespace     string
		Labels, Annotations map[string]string
	} `json:"metadata"`
	Spec struct {
		Selector json.RawMessage `json:"selector"`
		Ports    []kubePort      `json:"ports"`
		Type     string          `json:"type"` // of a Service
		podSpec
		Template struct {
			Metadata struct{ Labels, Annotations map[string]string } `json:"metadata"`
			Spec     podSpec                                         `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
	Status struct {
		PodIP string `json:"podIP"`
	} `json:"status"`
	Subsets []struct {
		Addresses, NotReadyAddresses []kubeAddress
		Ports                        []kubePort
	} `json:"subsets"`
}

// podSpec is a pod's; a Deployment has it in its template.
type podSpec struct {
	ServiceAccountName string          `json:"serviceAccountName"`
	SecurityContext    securityContext `json:"securityContext"`
	Containers         []struct {
		Name            string          `json:"name"`
		SecurityContext securityContext `json:"securityContext"`
	} `json:"containers"`
}

type securityContext struct {
	RunAsUser *int64 `json:"runAsUser"`
}

type kubePort struct {
	Name        string `json:"name"`
	Port        int    `json:"port"`
	Protocol    string `json:"protocol"` // TCP, UDP or SCTP
	AppProtocol string `json:"appProtocol"`
	// TargetPort is a number, or the name of a port of the pod.
	TargetPort any `json:"targetPort"`
}

type kubeAddress struct {
	IP        string `json:"ip"`
	TargetRef struct {
		Name string `json:"name"`
	} `json:"targetRef"`
}

// Add reads the documents of one file. Kinds that say nothing about where a request goes are passed over.
func (f *Files) Add(name string, r io.Reader) error {
	var errs []error
	d := yaml.NewDecoder(r)
	for i := 0; ; i++ {
		var node yaml.Node
		err := d.Decode(&node)
		if errors.Is(err, io.EOF) {
			return errors.Join(errs...)
		}
		if err != nil {
			return errors.Join(append(errs, &DocumentError{File: name, Index: i, Err: err})...)
		}
		var v any
		if err := node.Decode(&v); err != nil {
			errs = append(errs, &DocumentError{File: name, Index: i, Err: err})
			continue
		}
		for _, e := range f.add(v) {
			e.File, e.Index = name, i
			errs = append(errs, e)
		}
	}
}

// DocumentError is what is wrong with one document of a file.
type DocumentError struct {
	File  string
	Index int
	// Resource is kind/namespace/name, as far as they are known.
	Resource string
	// Err is api.Problems where the object itself is at fault.
	Err error
}

func (e *DocumentError) Error() string {
	return fmt.Sprintf("%s: document %d: %v", e.File, e.Index, e.Err)
}

// Unwrap is Err.
func (e *DocumentError) Unwrap() error { return e.Err }

func (f *Files) add(v any) []*DocumentError {
	if v == nil {
		return nil
	}
	refuse := func(err error) []*DocumentError { return []*DocumentError{{Err: err}} }
	raw, err := json.Marshal(v)
	if err != nil {
		return refuse(err)
	}
	content, err := api.ParseJSON(raw)
	if err != nil {
		return refuse(err)
	}
	kind, _ := content["kind"].(string)
	if items, ok := content["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		var errs []*DocumentError
		for _, item := range items {
			errs = append(errs, f.add(item)...)
		}
		return errs
	}
	var k kubeObject
	if err = json.Unmarshal(raw, &k); err != nil {
		err = fmt.Errorf("metadata, spec: %w", err)
	}
	if meta, ok := content["metadata"].(map[string]any); ok && k.Metadata.Namespace == "" && f.Namespace != "" {
		k.Metadata.Namespace, meta["namespace"] = f.Namespace, f.Namespace
	}
	k.Metadata.Namespace = cmp.Or(k.Metadata.Namespace, mesh.DefaultNamespace)
	if version, _ := content["apiVersion"].(string); strings.Contains(version, "istio.io/") || strings.Contains(version, ".composure.dev/") || version+kind == "v1Secret" {
		o, problems := api.Read(api.Kinds(), content)
		switch err = problems.Err(); {
		case err == nil:
			f.intent = append(f.intent, o)
		case o != nil && o.Kind.In(api.Networking()):
			f.invalid = append(f.invalid, o)
		}
	} else if err == nil {
		f.addKube(&k)
	}
	if err != nil {
		return []*DocumentError{{Resource: strings.ToLower(kind) + "/" + k.Metadata.Namespace + "/" + k.Metadata.Name, Err: err}}
	}
	return nil
}

// hasNamespace reports whether an object is of a namespace.
func (f *Files) hasNamespace(name string) bool {
	in := func(k kubeObject) bool { return k.Metadata.Namespace == name }
	return slices.ContainsFunc(f.services, in) || slices.ContainsFunc(f.pods, in) ||
		slices.ContainsFunc(f.intent, func(o *api.Object) bool { return o.Meta.Namespace == name })
}

func (f *Files) addKube(k *kubeObject) {
	switch k.Kind {
	case "Service":
		f.services = append(f.services, *k)
	case "Endpoints":
		if f.endpoints == nil {
			f.endpoints = map[string]kubeObject{}
		}
		f.endpoints[k.Metadata.Namespace+"/"+k.Metadata.Name] = *k
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet":
		k.Metadata.Labels, k.Metadata.Annotations = k.Spec.Template.Metadata.Labels, k.Spec.Template.Metadata.Annotations
		k.Spec.podSpec = k.Spec.Template.Spec
		f.pods = append(f.pods, *k)
	case "Pod":
		f.pods = append(f.pods, *k)
	case "Namespace":
		f.namespaces = append(f.namespaces, k.Metadata.Name)
	}
}

// Explain explains a request to the proxy of from: a workload or a service of the files, a Gateway or one of the words that
// select it, or else a client that they do not know.
func (f *Files) Explain(from string, r Request) (*Explanation, error) {
	b := newFacts(f)
	s, err := b.snapshot(from)
	if err != nil {
		return nil, err
	}
	e, err := explain(s, r, b.targets)
	if err != nil {
		return nil, err
	}
	guards, err := b.secured()
	if err != nil {
		return nil, err
	}
	return e, e.Meet(guards, &s.Proxy, r)
}

func (b *facts) snapshot(from string) (*snapshot.Snapshot, error) {
	if err := b.services(); err != nil {
		return nil, err
	}
	proxy := b.proxy(from)
	s, _, err := b.index().Compile(proxy)
	return s, err
}

func (b *facts) services() error {
	for i := range b.files.services {
		if err := b.service(&b.files.services[i]); err != nil {
			return err
		}
	}
	for i := range b.files.pods {
		b.pod(&b.files.pods[i]) // those that no Service selects, too
	}
	return nil
}

// pod is the workload of a pod, or of a template of pods.
func (b *facts) pod(p *kubeObject) *mesh.Workload {
	w := b.workload(p.Metadata.Name, p.Metadata.Namespace, p.Status.PodIP, p.Metadata.Labels)
	if account := p.Spec.ServiceAccountName; account != "" {
		w.ServiceAccount, w.Identity = account, "spiffe://cluster.local/ns/"+w.Namespace+"/sa/"+account
	}
	return w
}

func (b *facts) index() *compile.Index {
	v := compile.View{Intent: b.files.intent, TrustDomain: "cluster.local"}
	for _, name := range slices.Sorted(maps.Keys(b.workloads)) {
		v.Facts.Workloads = append(v.Facts.Workloads, *b.workloads[name])
	}
	return compile.New(v)
}

// usage are the policies of Mixer, which need no facts to be checked.
func (b *facts) usage() *policies.Index { return policies.New(policies.View{Intent: b.files.intent}) }

// Check says what of the files is questionable: what the mesh's own objects refer to and is not there, rules that can't be
// reached, and so on.
func (f *Files) Check() ([]analysis.Problem, error) {
	all := *f
	all.intent = slices.Concat(f.intent, f.invalid)
	b := newFacts(&all)
	if err := b.services(); err != nil {
		return nil, err
	}
	b.gateways()
	return slices.Concat(b.index().CheckAll(), b.security().CheckAll(), b.usage().CheckAll(), f.CheckServices()), nil
}

// Objects are the mesh's own.
func (f *Files) Objects() []*api.Object { return f.intent }

// CheckServices says what is questionable about Kubernetes' own objects.
func (f *Files) CheckServices() []analysis.Problem {
	problems := f.checkWorkloads()
	for i := range f.services {
		problems = append(problems, f.services[i].checkPorts()...)
	}
	return problems
}

// The gateway that there is where files have Gateways and none that they select: as Istio's profiles and meshctl compose
// inject add it.
const ingressGateway = "istio-ingressgateway"

var (
	ingressLabels = map[string]string{"istio": "ingressgateway", "app": ingressGateway}
	ingressPorts  = []mesh.Port{{Number: 80, Protocol: mesh.ProtocolHTTP}, {Number: 443, Protocol: "https"}}
)

// addIngress adds the gateway that files leave to the installation. It has the Secrets of Istio's own namespace where the
// files have such, else those of the files' namespace.
func (b *facts) addIngress() {
	wanted, namespace := false, cmp.Or(b.files.Namespace, mesh.DefaultNamespace)
	for _, o := range b.files.intent {
		switch spec := o.Spec.(type) {
		case *networking.Gateway:
			wanted = wanted || mesh.Selects(spec.Selector, ingressLabels)
		case *api.Secret:
			if o.Meta.Namespace == api.RootNamespace {
				namespace = api.RootNamespace
			}
		}
	}
	for _, w := range b.workloads {
		wanted = wanted && !mesh.Selects(map[string]string{"istio": ingressLabels["istio"]}, w.Labels)
	}
	if wanted {
		b.workload(ingressGateway, namespace, "", ingressLabels).Ports = ingressPorts
	}
}

// gateways makes gateways of the workloads that Gateways select; a service's ports are what they publish.
func (b *facts) gateways() {
	b.addIngress()
	for _, w := range b.workloads {
		for _, o := range b.files.intent {
			g, ok := o.Spec.(*networking.Gateway)
			if !ok || !mesh.Selects(g.Selector, w.Labels) {
				continue
			}
			w.Role, w.Meshed = mesh.RoleGateway, false
			for i := range w.Ports {
				w.Ports[i].Published = []string{"service"}
			}
		}
	}
}

// network is the one that all workloads of files share.
const network = "files"

// facts are made of files.
type facts struct {
	files     *Files
	workloads map[string]*mesh.Workload // by name
	// targets are the ports behind those of services, by a workload's address and the service's port, where they
	// differ: Docker knows no such thing, Kubernetes does.
	targets map[netip.AddrPort]uint16
	made    int // addresses
}

func newFacts(f *Files) *facts {
	return &facts{files: f, workloads: map[string]*mesh.Workload{}, targets: map[netip.AddrPort]uint16{}}
}

func (b *facts) service(s *kubeObject) error {
	members, err := b.members(s)
	if err != nil {
		return err
	}
	for _, w := range members {
		w.Services = append(w.Services, s.Metadata.Name)
		for _, p := range s.Spec.Ports {
			if p.Port < 1 || p.Port > 65535 {
				return fmt.Errorf("service %s: spec.ports: %d is no port", s.Metadata.Name, p.Port)
			}
			w.Ports = append(w.Ports, mesh.Port{Number: uint16(p.Port), Protocol: protocolOf(p)})
			b.target(s, w, &p)
		}
	}
	return nil
}

// target notes the port of w that stands behind a service's port.
func (b *facts) target(s *kubeObject, w *mesh.Workload, p *kubePort) {
	a := w.Addresses[0]
	ip, err := netip.ParseAddr(cmp.Or(a.IPv4, a.IPv6))
	if err != nil {
		return
	}
	port := 0
	if n, ok := p.TargetPort.(float64); ok {
		port = int(n)
	}
	e := b.files.endpoints[s.Metadata.Namespace+"/"+s.Metadata.Name]
	for _, subset := range e.Subsets {
		listed := append(slices.Clone(subset.Addresses), subset.NotReadyAddresses...)
		if !slices.ContainsFunc(listed, func(l kubeAddress) bool { return l.IP == ip.String() }) {
			continue
		}
		for _, q := range subset.Ports {
			if q.Name == p.Name || len(subset.Ports) == 1 && len(s.Spec.Ports) == 1 {
				port = q.Port
			}
		}
	}
	if 0 < port && port < 65536 && port != p.Port {
		b.targets[netip.AddrPortFrom(ip, uint16(p.Port))] = uint16(port) //nolint:gosec // service checks the range
	}
}

// protocolOf is what a port's appProtocol says, else its name up to the dash
// (https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/).
func protocolOf(p kubePort) mesh.Protocol {
	if p.Protocol == "UDP" {
		return "udp"
	}
	if named := appProtocols[p.AppProtocol]; named != "" {
		return named
	}
	prefix, _, _ := strings.Cut(p.Name, "-")
	named := mesh.Protocol(strings.ToLower(cmp.Or(p.AppProtocol, prefix)))
	if !slices.Contains(protocols, named) {
		return mesh.ProtocolAuto
	}
	return named
}

// protocols are those that Istio knows a port's name by.
var protocols = []mesh.Protocol{
	"http", "http2", "https", "grpc", "grpc-web", "tcp", "tls", "udp", "mongo", "mysql", "redis",
}

// appProtocols are Kubernetes' own names for some of them
// (https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol).
var appProtocols = map[string]mesh.Protocol{
	"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https",
}

func (b *facts) members(s *kubeObject) ([]*mesh.Workload, error) {
	if e, ok := b.files.endpoints[s.Metadata.Namespace+"/"+s.Metadata.Name]; ok {
		return b.addressed(s, &e)
	}
	var selector map[string]string
	if len(s.Spec.Selector) > 0 {
		if err := json.Unmarshal(s.Spec.Selector, &selector); err != nil {
			return nil, fmt.Errorf("service %s: spec.selector: %w", s.Metadata.Name, err)
		}
	}
	var members []*mesh.Workload
	for i := range b.files.pods {
		p := &b.files.pods[i]
		if len(selector) > 0 && p.Metadata.Namespace == s.Metadata.Namespace && mesh.Selects(selector, p.Metadata.Labels) {
			members = append(members, b.pod(p))
		}
	}
	if len(members) > 0 {
		return members, nil
	}
	members = append(members, b.workload(s.Metadata.Name, s.Metadata.Namespace, "", selector))
	for _, labels := range b.files.subsets(s) {
		members = append(members, b.workload(s.Metadata.Name, s.Metadata.Namespace, "", labels))
	}
	return members, nil
}

// addressed are the workloads at the addresses of Endpoints.
func (b *facts) addressed(s, e *kubeObject) ([]*mesh.Workload, error) {
	var members []*mesh.Workload
	add := func(list []kubeAddress, health string) error {
		for _, a := range list {
			if _, err := netip.ParseAddr(a.IP); err != nil {
				return fmt.Errorf("endpoints %s: subsets.addresses.ip: %w", e.Metadata.Name, err)
			}
			name, labels := cmp.Or(a.TargetRef.Name, s.Metadata.Name), map[string]string(nil)
			for i := range b.files.pods {
				if p := &b.files.pods[i]; p.Status.PodIP == a.IP || p.Metadata.Name == a.TargetRef.Name {
					name, labels = p.Metadata.Name, p.Metadata.Labels
				}
			}
			w := b.workload(name, s.Metadata.Namespace, a.IP, labels)
			w.Health = health
			members = append(members, w)
		}
		return nil
	}
	for _, subset := range e.Subsets {
		if err := errors.Join(add(subset.Addresses, ""), add(subset.NotReadyAddresses, "unhealthy")); err != nil {
			return nil, err
		}
	}
	if len(members) == 0 { // the service has a name and nobody who answers
		w := b.workload(s.Metadata.Name, s.Metadata.Namespace, "", nil)
		w.Running = false
		members = append(members, w)
	}
	return members, nil
}

// subsets are the labels that DestinationRules ask of a service's workloads.
func (f *Files) subsets(s *kubeObject) []map[string]string {
	var all []map[string]string
	for _, o := range f.intent {
		rule, ok := o.Spec.(*networking.DestinationRule)
		if !ok {
			continue
		}
		host, _, _ := strings.Cut(rule.Host, ".")
		if host != s.Metadata.Name {
			continue
		}
		for _, subset := range rule.Subsets {
			if !slices.ContainsFunc(all, func(m map[string]string) bool { return maps.Equal(m, subset.Labels) }) {
				all = append(all, subset.Labels)
			}
		}
	}
	return all
}

// workload is the one of a name and address, a new one unless it is there already: one may answer to several services.
func (b *facts) workload(name, namespace, ip string, labels map[string]string) *mesh.Workload {
	for _, w := range b.workloads {
		if ip != "" && w.Namespace == namespace && holdsAddress(w, ip) || ip == "" && w.Name == name && w.Namespace == namespace && maps.Equal(w.Labels, labels) {
			return w
		}
	}
	unique := name
	for n := 2; b.workloads[unique] != nil; n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	if ip == "" {
		// From the block that is for benchmarks (RFC 2544): nobody's.
		b.made++
		ip = netip.AddrFrom4([4]byte{198, 18, byte(b.made >> 8), byte(b.made)}).String() //nolint:gosec // fewer than 65536
	}
	w := &mesh.Workload{
		Name: unique, Namespace: namespace, ServiceAccount: mesh.DefaultNamespace, Role: mesh.RoleApp, Labels: labels, Meshed: true, Running: true,
		Identity: "spiffe://cluster.local/ns/" + namespace + "/sa/" + name,
	}
	a := mesh.Address{Network: network, IPv4: ip}
	if strings.Contains(ip, ":") {
		a.IPv4, a.IPv6 = "", ip
	}
	w.Addresses = []mesh.Address{a}
	b.workloads[unique] = w
	return w
}

func holdsAddress(w *mesh.Workload, ip string) bool {
	return slices.ContainsFunc(w.Addresses, func(a mesh.Address) bool { return a.IPv4 == ip || a.IPv6 == ip })
}

// proxy is the name of the workload whose proxy is asked.
func (b *facts) proxy(from string) string {
	namespace, name, ok := strings.Cut(from, "/")
	if !ok {
		namespace, name = mesh.DefaultNamespace, from
	}
	if w := b.workloads[name]; w != nil {
		return name
	}
	for _, n := range slices.Sorted(maps.Keys(b.workloads)) {
		if w := b.workloads[n]; w.Namespace == namespace && w.Serves(name) {
			return n
		}
	}
	if selector := b.files.gateway(name); selector != nil {
		w := b.workload(name, namespace, "", selector)
		w.Role, w.Meshed = mesh.RoleGateway, false
		return w.Name
	}
	return b.workload(name, namespace, "", map[string]string{"app": name}).Name
}

// gateway is the selector of the Gateway of a name, or of one that selects istio: <word> where name is word or istio-word.
func (f *Files) gateway(name string) map[string]string {
	for _, o := range f.intent {
		g, ok := o.Spec.(*networking.Gateway)
		if !ok {
			continue
		}
		if o.Meta.Name == name {
			return g.Selector
		}
		for _, word := range g.Selector {
			if word == name || word == strings.TrimPrefix(name, "istio-") {
				return g.Selector
			}
		}
	}
	return nil
}
