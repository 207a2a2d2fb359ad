package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// gatewayServers are the ports that Gateways open at this proxy: those whose selector it has the labels for. Servers
// of one port are one.
func (c *compiler) gatewayServers() []snapshot.GatewayServer {
	routes := map[uint16]map[string][]snapshot.Route{} // by port and domain
	ports := map[uint16]*snapshot.GatewayServer{}
	for _, o := range c.gateways {
		gw := o.Spec.(*networking.Gateway)
		if !mesh.Selects(gw.Selector, c.proxy.Labels) {
			continue
		}
		for i, server := range gw.Servers {
			port, protocol := uint16(server.Port.Number), serverProtocol(server.Port) //nolint:gosec // api validates the range
			switch have := ports[port]; {
			case have == nil:
				ports[port] = &snapshot.GatewayServer{Port: port, Protocol: protocol}
				routes[port] = map[string][]snapshot.Route{}
			case have.Protocol != protocol:
				c.conflict(o, i, have.Protocol, protocol)
				continue
			}
			switch {
			case api.TerminatesTLS(server):
				c.tlsServer(ports[port], o, i, server)
			case protocol != mesh.ProtocolHTTP:
				c.streamServer(ports[port], o, server)
			case server.GetTls().GetHttpsRedirect():
				c.redirectServer(routes[port], o, i, server)
			default:
				c.serverRoutes(routes[port], o, server)
			}
		}
	}
	var servers []snapshot.GatewayServer
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		server := *ports[port]
		server.VirtualHosts = c.gatewayHosts(routes[port])
		slices.SortFunc(server.TLSServers, func(a, b snapshot.TLSServer) int { return cmp.Compare(a.Name, b.Name) })
		servers = append(servers, server)
	}
	return servers
}

// gatewayHosts are the virtual hosts of a server's routes by domain.
func (c *compiler) gatewayHosts(routes map[string][]snapshot.Route) []snapshot.VirtualHost {
	var hosts []snapshot.VirtualHost
	for _, domain := range slices.Sorted(maps.Keys(routes)) {
		vh := snapshot.VirtualHost{Name: domain, Domains: []string{domain}, Routes: catchAllsLast(routes[domain])}
		if host, ok := c.catalog.aliases[domain]; ok {
			vh.Service = host
		}
		hosts = append(hosts, vh)
	}
	return hosts
}

// redirectServer sends whoever asks for a host of the server to the same over HTTPS.
func (c *compiler) redirectServer(routes map[string][]snapshot.Route, gateway *api.Object, i int, server *networking.Server) {
	for _, host := range server.Hosts {
		_, domain := api.SplitGatewayHost(host)
		domain = strings.ToLower(domain)
		routes[domain] = append(routes[domain], snapshot.Route{
			Name: "https-redirect", Resource: fmt.Sprintf("%s spec.servers[%d]", gateway, i),
			RouteRules: snapshot.RouteRules{Redirect: &snapshot.Redirect{Status: http.StatusMovedPermanently, Scheme: "https"}},
		})
	}
}

// serverRoutes adds to routes, by domain, the rules of the VirtualServices that name the gateway and have a host in
// common with the server. Several for one domain are merged, the oldest first
// (istio.io/docs/ops/best-practices/traffic-management/#split-virtual-services).
func (c *compiler) serverRoutes(routes map[string][]snapshot.Route, gateway *api.Object, server *networking.Server) {
	name := gateway.Meta.Namespace + "/" + gateway.Meta.Name
	for _, o := range c.virtualServices {
		vs := o.Spec.(*networking.VirtualService)
		if len(vs.Http) == 0 || !bound(vs.Gateways, name, o.Meta.Namespace) || !visible(o, c.proxy.Namespace) {
			continue
		}
		domains := c.serverDomains(gateway, server, o)
		if len(domains) == 0 {
			continue
		}
		rules := c.routes(o, name)
		for _, domain := range domains {
			routes[domain] = appendNew(routes[domain], rules)
		}
	}
}

// serverDomains are the hosts of a VirtualService, under all their names, as far as the server has them.
func (c *compiler) serverDomains(gateway *api.Object, server *networking.Server, o *api.Object) []string {
	var domains []string
	for _, host := range o.Spec.(*networking.VirtualService).Hosts {
		host = c.catalog.resolve(host, o.Meta.Namespace)
		names := c.catalog.domains(host)
		if len(names) == 0 {
			names = []string{host}
		}
		for _, pattern := range server.Hosts {
			namespace, pattern := api.SplitGatewayHost(pattern)
			if namespace == "." {
				namespace = gateway.Meta.Namespace
			}
			if namespace != "*" && namespace != o.Meta.Namespace {
				continue
			}
			domains = append(domains, common(host, names, c.catalog.resolve(pattern, gateway.Meta.Namespace))...)
		}
	}
	slices.Sort(domains)
	return slices.Compact(domains)
}

// common are the names of a host that pattern has too: all of them where it has the host itself.
func common(host string, names []string, pattern string) []string {
	if covers(pattern, host) {
		return names
	}
	var found []string
	for _, name := range names {
		if domain, ok := intersect(name, pattern); ok {
			found = append(found, domain)
		}
	}
	return found
}

// appendNew appends rules but those that routes holds: two servers of one port may lead to the same rule.
func appendNew(routes, rules []snapshot.Route) []snapshot.Route {
	for _, r := range rules {
		if !slices.ContainsFunc(routes, func(have snapshot.Route) bool { return reflect.DeepEqual(have, r) }) {
			routes = append(routes, r)
		}
	}
	return routes
}

// catchAllsLast moves rules that match everything behind the others, so that merging hides none.
func catchAllsLast(routes []snapshot.Route) []snapshot.Route {
	rank := func(r snapshot.Route) int {
		if len(r.Matches) == 0 {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(routes, func(a, b snapshot.Route) int { return cmp.Compare(rank(a), rank(b)) })
	return routes
}
