package compose

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
	"github.com/composure-mesh/composure/mesh/settings"
)

// Workload is what the mesh is told about a service.
type Workload struct {
	Service        string            // the user's compose service
	Name           string            // of the workload and the compose service that runs it: Service, or <service>-<n>
	Replica        int               // n, from 1
	Services       []string          // names that clients dial, canonical one first
	Labels         map[string]string // subset labels
	Ports          []mesh.Port       // by Number
	Namespace      string            // as its label says, else empty
	ServiceAccount string
	// Exclusions from capture, as the labels say.
	ExcludeInboundPorts, ExcludeOutboundPorts, ExcludeOutboundCIDRs string
	// ProxyLogLevel and ProxyMemory are set by labels.
	ProxyLogLevel, ProxyMemory string
	// ProxySettings are the values of package settings that labels set, by name.
	ProxySettings map[string]string

	given []string // those of Services that a label or a variable gives: no network knows them by itself
}

// Sandbox and Proxy are the services that inject adds for the workload.
func (w *Workload) Sandbox() string { return sandboxOf(w.Name) }

// Proxy is the name of the proxy's compose service.
func (w *Workload) Proxy() string { return proxyOf(w.Name) }

func sandboxOf(service string) string { return service + "-mesh-sandbox" }

func proxyOf(service string) string { return service + "-mesh-proxy" }

func (s *Source) newWorkload(svc types.ServiceConfig) (Workload, error) {
	if env, ok := s.registrator[svc.Name]; ok {
		svc.Environment = env
	}
	w := Workload{
		Service:              svc.Name,
		Name:                 svc.Name,
		Replica:              1,
		Namespace:            svc.Labels[labels.Namespace],
		ServiceAccount:       or(svc.Labels[labels.ServiceAccount], svc.Name),
		ExcludeInboundPorts:  svc.Labels[labels.ExcludeInboundPorts],
		ExcludeOutboundPorts: svc.Labels[labels.ExcludeOutboundPorts],
		ExcludeOutboundCIDRs: svc.Labels[labels.ExcludeOutboundCIDRs],
		ProxyLogLevel:        svc.Labels[labels.ProxyLogLevel],
		ProxyMemory:          svc.Labels[labels.ProxyMemory],
	}
	for i := range settings.All {
		name := settings.All[i].Name
		if v, ok := svc.Labels[labels.ProxyPrefix+name]; ok {
			if w.ProxySettings == nil {
				w.ProxySettings = map[string]string{}
			}
			w.ProxySettings[name] = v
		}
	}
	if err := s.checkLabels(svc); err != nil {
		return w, err
	}
	w.given = givenNames(svc)
	w.Services = serviceNames(svc, w.given)
	for _, name := range w.Services {
		if !serviceName.MatchString(name) {
			return w, s.errorf(svc.Name, []string{"labels", labels.Service}, "%q can't be a service's name: want letters, digits, dots, dashes and underscores", name)
		}
	}
	w.Labels = subsetLabels(svc, w.Services[0])
	ports, err := knownPorts(svc)
	if err != nil {
		return w, s.errorf(svc.Name, err.field, "%s", err.reason)
	}
	w.Ports = ports
	return w, nil
}

func or(v, otherwise string) string {
	if v == "" {
		return otherwise
	}
	return v
}

var (
	serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	logLevels   = []string{"debug", "info", "warn", "error"}
)

// reserved refuses labels of Composure's that users don't write: with them a container could pass for another's proxy,
// or a service out of the mesh for one in it.
func (s *Source) reserved(svc types.ServiceConfig) error {
	refuse := func(field []string, set types.Labels) error {
		for _, key := range slices.Sorted(maps.Keys(set)) {
			if strings.HasPrefix(key, labels.Prefix) && !labels.User(key) && !isSetting(key) {
				return s.errorf(svc.Name, append(field, key), "%s is not a label for users, and %s… is reserved: remove it; docs/compose.md lists those there are", key, labels.Prefix)
			}
		}
		return nil
	}
	if svc.Build != nil {
		if err := refuse([]string{"build", "labels"}, svc.Build.Labels); err != nil {
			return err
		}
	}
	return refuse([]string{"labels"}, svc.Labels)
}

// isSetting reports whether a label sets something of the service's proxy.
func isSetting(key string) bool {
	name, ok := strings.CutPrefix(key, labels.ProxyPrefix)
	return ok && settings.Find(name) != nil
}

// checkLabels validates the values of the user's composure.* labels.
func (s *Source) checkLabels(svc types.ServiceConfig) error {
	for _, key := range slices.Sorted(maps.Keys(svc.Labels)) {
		v, problem := svc.Labels[key], ""
		switch key {
		case labels.ExcludeInboundPorts, labels.ExcludeOutboundPorts:
			for p := range strings.SplitSeq(v, ",") {
				if _, err := parsePort(strings.TrimSpace(p)); err != nil {
					problem = "want ports from 1 to 65535, separated by commas"
				}
			}
		case labels.ExcludeOutboundCIDRs:
			for p := range strings.SplitSeq(v, ",") {
				if _, err := netip.ParsePrefix(strings.TrimSpace(p)); err != nil {
					problem = "want networks such as 10.0.0.0/8, separated by commas"
				}
			}
		case labels.ProxyLogLevel:
			if !slices.Contains(logLevels, v) {
				problem = "want one of " + strings.Join(logLevels, ", ")
			}
		case labels.ProxyMemory:
			if n, err := units.RAMInBytes(v); err != nil || n <= 0 {
				problem = "want a size such as 64m"
			}
		case labels.Service, labels.Namespace, labels.ServiceAccount:
			if !serviceName.MatchString(v) {
				problem = "want letters, digits, dots, dashes and underscores"
			}
		default:
			if name, ok := strings.CutPrefix(key, labels.ProxyPrefix); ok {
				if err := settings.Find(name).Check(v); err != nil {
					problem = err.Error()
				}
			}
		}
		if problem != "" {
			return s.errorf(svc.Name, []string{"labels", key}, "%q: %s", v, problem)
		}
	}
	return nil
}

// givenNames are the names that the user gives a service in the mesh. SERVICE_NAME and SERVICE_<port>_NAME are what
// Registrator, and with it Istio's own Consul bookinfo, took the names from
// (https://gliderlabs.github.io/registrator/latest/user/services/).
func givenNames(svc types.ServiceConfig) []string {
	names := []string{svc.Labels[labels.Service], environment(svc, "SERVICE_NAME")}
	for _, port := range registratorPorts(svc) {
		names = append(names, environment(svc, fmt.Sprintf("SERVICE_%d_NAME", port)))
	}
	return unique(slices.DeleteFunc(names, func(n string) bool { return n == "" }))
}

// serviceNames are the names that clients dial: the canonical one, the compose service's, and the aliases that
// the user wrote.
func serviceNames(svc types.ServiceConfig, given []string) []string {
	names := slices.Clone(given)
	put := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if app := svc.Labels["app"]; hasAlias(svc, app) {
		put(app) // one version of several that share an alias, each labelled with it
	}
	put(svc.Name)
	for _, network := range slices.Sorted(maps.Keys(svc.Networks)) {
		if n := svc.Networks[network]; n != nil {
			for _, alias := range n.Aliases {
				put(alias)
			}
		}
	}
	return names
}

func hasAlias(svc types.ServiceConfig, name string) bool {
	for _, n := range svc.Networks {
		if n != nil && slices.Contains(n.Aliases, name) {
			return true
		}
	}
	return false
}

func environment(svc types.ServiceConfig, key string) string {
	if v := svc.Environment[key]; v != nil {
		return *v
	}
	return ""
}

var registratorName = regexp.MustCompile(`^SERVICE_(\d+)_NAME$`)

// registratorPorts are the ports that SERVICE_<port>_NAME speaks of, sorted.
func registratorPorts(svc types.ServiceConfig) []uint16 {
	var ports []uint16
	for key := range svc.Environment {
		if m := registratorName.FindStringSubmatch(key); m != nil {
			if port, err := parsePort(m[1]); err == nil && environment(svc, "SERVICE_"+m[1]+"_IGNORE") == "" {
				ports = append(ports, port)
			}
		}
	}
	slices.Sort(ports)
	return ports
}

// plainLabel is a label that can choose a subset: one without a namespace of some tool's.
var plainLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$`)

// subsetLabels are the labels that subsets and selectors choose by: the user's plain labels, the tags of
// SERVICE_TAGS (key|value, separated by commas), composure.version, and app, which is the canonical service
// where nothing else says it.
func subsetLabels(svc types.ServiceConfig, canonical string) map[string]string {
	set := map[string]string{"app": canonical}
	for tag := range strings.SplitSeq(environment(svc, "SERVICE_TAGS"), ",") {
		if k, v, ok := strings.Cut(strings.TrimSpace(tag), "|"); ok && plainLabel.MatchString(k) {
			set[k] = v
		}
	}
	for k, v := range svc.Labels {
		if plainLabel.MatchString(k) {
			set[k] = v
		}
	}
	if v := svc.Labels[labels.Version]; v != "" {
		set["version"] = v
	}
	return set
}

// fieldError is a problem with one field of a service.
type fieldError struct {
	field  []string
	reason string
}

// knownPorts are the TCP ports that the service is known to serve, each with the protocol that its label, its
// app_protocol, SERVICE_PROTOCOL or its number declares, in this order.
func knownPorts(svc types.ServiceConfig) ([]mesh.Port, *fieldError) {
	protocols := map[uint16]mesh.Protocol{}
	declare := func(port uint16, p mesh.Protocol) {
		if protocols[port] == "" {
			protocols[port] = p
		}
	}
	for key, v := range svc.Labels {
		number, ok := strings.CutPrefix(key, labels.ProtocolPrefix)
		if !ok {
			continue
		}
		port, err := parsePort(number)
		if err != nil {
			return nil, &fieldError{[]string{"labels", key}, "it ends in no port: want " + labels.ProtocolPrefix + "<port from 1 to 65535>"}
		}
		if !serviceName.MatchString(v) {
			return nil, &fieldError{[]string{"labels", key}, fmt.Sprintf("%q: want a protocol such as http, grpc or tcp", v)}
		}
		declare(port, mesh.Protocol(strings.ToLower(v)))
	}
	for _, p := range svc.Ports {
		if p.Protocol == "" || p.Protocol == "tcp" {
			declare(uint16(p.Target), appProtocol(p.AppProtocol))
		}
	}
	for _, e := range svc.Expose {
		exposed, err := types.ParsePortConfig(e)
		if err != nil {
			continue // Compose says what it thinks of it
		}
		for _, p := range exposed {
			if p.Protocol == "" || p.Protocol == "tcp" {
				declare(uint16(p.Target), "")
			}
		}
	}
	for _, port := range registratorPorts(svc) {
		declare(port, "")
	}
	var ports []mesh.Port
	for _, number := range slices.Sorted(maps.Keys(protocols)) {
		p := protocols[number]
		if p == "" {
			p = mesh.Protocol(or(strings.ToLower(environment(svc, "SERVICE_PROTOCOL")), string(mesh.WellKnownProtocol(number))))
		}
		ports = append(ports, mesh.Port{Number: number, Protocol: p})
	}
	return ports, nil
}

// appProtocol reads ports[].app_protocol, whose values are those of Kubernetes' appProtocol
// (https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol).
func appProtocol(v string) mesh.Protocol {
	switch v = strings.ToLower(v); v {
	case "kubernetes.io/h2c", "h2c":
		return mesh.ProtocolHTTP2
	case "kubernetes.io/ws", "ws":
		return mesh.ProtocolHTTP
	case "kubernetes.io/wss", "wss":
		return mesh.ProtocolHTTPS
	}
	return mesh.Protocol(v)
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

// portList is mesh labels.Ports: <port>[/<protocol>], comma-separated.
func portList(ports []mesh.Port) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = strconv.Itoa(int(p.Number))
		if p.Protocol != "" {
			list[i] += "/" + string(p.Protocol)
		}
	}
	return strings.Join(list, ",")
}
