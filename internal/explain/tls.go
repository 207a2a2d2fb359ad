package explain

import (
	"fmt"
	"slices"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/table"
)

// TLSPair is how one client's proxy dials one endpoint of a service at a port, and what that takes.
type TLSPair struct {
	Client   string `json:"client"`
	Host     string `json:"host"`
	Subset   string `json:"subset,omitempty"` // where its rule says something else than that of the service
	Port     uint16 `json:"port,omitempty"`   // 0: none is declared; whichever it is
	Workload string `json:"workload"`
	// OK says that the endpoint takes what the client sends. Reason says why not.
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	// Server is what the endpoint takes, ServerFrom what has decided it.
	Server     snapshot.MutualTLS `json:"server"`
	ServerFrom string             `json:"serverFrom"`
	// ClientTLS says that the client dials with mutual TLS, ClientFrom what has decided it.
	ClientTLS  bool   `json:"clientTLS"`
	ClientFrom string `json:"clientFrom"`
}

// What decides where no object does.
const (
	automatic = "automatic"
	noProxy   = "no proxy"
)

// TLS is how the proxy of a snapshot dials the services that it knows, or the one of a host or short name, by the code that
// dials them. server is what the listeners of a workload take, nil where it has none of the mesh's.
func TLS(client *snapshot.Snapshot, server func(workload string) *snapshot.Modes, service string) ([]TLSPair, error) {
	t, err := table.Build(client, nil)
	if err != nil {
		return nil, err
	}
	pairs := []TLSPair{}
	found := service == ""
	for i := range client.Services {
		s := &client.Services[i]
		if service != "" && service != s.Host && service != s.Name {
			continue
		}
		found = true
		ports := []uint16{}
		for _, p := range s.Ports {
			ports = append(ports, p.Number)
		}
		if len(ports) == 0 {
			ports = append(ports, 0)
		}
		for _, port := range ports {
			pairs = append(pairs, tlsPairs(t, client, s, "", port, server)...)
			_, whole := policyAt(&s.Policy, s.PortPolicies, port)
			for j := range s.Subsets {
				sub := &s.Subsets[j]
				if _, mode := policyAt(&sub.Policy, sub.PortPolicies, port); mode != whole {
					pairs = append(pairs, tlsPairs(t, client, s, sub.Name, port, server)...)
				}
			}
		}
	}
	if !found {
		return nil, fmt.Errorf("the proxy of %s knows no service %q", client.Proxy.Name, service)
	}
	return pairs, nil
}

// policyAt is the rule that holds for a port, and its mode.
func policyAt(p *snapshot.Policy, ports []snapshot.PortPolicy, port uint16) (rule string, mode snapshot.TLSMode) {
	if i := slices.IndexFunc(ports, func(p snapshot.PortPolicy) bool { return p.Port == port }); i >= 0 {
		p = &ports[i].Policy
	}
	return p.TLSFrom, p.TLS
}

func tlsPairs(t *table.Table, client *snapshot.Snapshot, s *snapshot.Service, subset string, port uint16, server func(string) *snapshot.Modes) (pairs []TLSPair) {
	policy, ports := &s.Policy, s.PortPolicies
	if i := slices.IndexFunc(s.Subsets, func(sub snapshot.Subset) bool { return sub.Name == subset }); i >= 0 {
		policy, ports = &s.Subsets[i].Policy, s.Subsets[i].PortPolicies
	}
	rule, _ := policyAt(policy, ports, port)
	for _, e := range t.ClusterAt(s.Host, subset, port).Endpoints {
		p := TLSPair{Client: client.Proxy.Name, Host: s.Host, Subset: subset, Port: port, Server: snapshot.Disable, ServerFrom: noProxy, ClientFrom: automatic}
		if e.Workload != nil {
			p.Workload = e.Workload.Name
		}
		to := e.Target(t.Service(s.Host).Target(port))
		if modes := server(p.Workload); modes != nil {
			p.Server, p.ServerFrom = modes.At(to.Addr.Port())
		}
		p.ClientTLS = to.Identity != ""
		if rule != "" {
			p.ClientFrom = rule
		}
		switch {
		case p.Workload == client.Proxy.Name:
			continue // a call to itself passes no network
		case to.Unreachable != nil:
			p.Reason = to.Unreachable.Error()
		case !p.ClientTLS && p.Server == snapshot.Strict:
			p.Reason = "plain text is sent to who takes mutual TLS alone"
		default:
			p.OK = true
		}
		pairs = append(pairs, p)
	}
	return pairs
}
