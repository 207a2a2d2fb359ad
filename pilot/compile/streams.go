package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// streams are the routes of what leaves a sidecar's application and is not HTTP, the oldest VirtualService's first.
func (c *compiler) streams() (tls []snapshot.TLSRoute, tcp []snapshot.TCPRoute) {
	for _, o := range c.virtualServices {
		vs := o.Spec.(*networking.VirtualService)
		if !bound(vs.Gateways, api.MeshGateway, o.Meta.Namespace) || !visible(o, c.proxy.Namespace) {
			continue
		}
		tls = append(tls, c.tlsRoutes(o, api.MeshGateway, nil)...)
		for i, name := range vs.Hosts {
			host := c.catalog.resolve(name, o.Meta.Namespace)
			routes := c.tcpRoutes(o, api.MeshGateway)
			if s := c.catalog.services[host]; s != nil && s.entry == nil {
				for j := range routes {
					routes[j].Service = host
				}
			} else if s != nil && len(c.dialled(s)) > 0 {
				for j := range routes {
					if len(routes[j].Subnets) == 0 {
						routes[j].Subnets = c.dialled(s)
					}
				}
			} else if routes = slices.DeleteFunc(routes, func(r snapshot.TCPRoute) bool { return len(r.Subnets) == 0 }); len(vs.Tcp) > 0 && len(routes) == 0 {
				c.problem(o, fmt.Sprintf("spec.hosts[%d]", i), fmt.Sprintf("%s has no address that is known: a tcp route for it needs destinationSubnets", host))
			}
			tcp = append(tcp, routes...)
		}
	}
	entryTLS, entryTCP := c.entryStreams()
	return append(tls, entryTLS...), append(tcp, entryTCP...)
}

// tcpRoutes are the tcp rules of a VirtualService as they concern this proxy at gateway: one for each match.
func (c *compiler) tcpRoutes(o *api.Object, gateway string) []snapshot.TCPRoute {
	var routes []snapshot.TCPRoute
	for i, r := range o.Spec.(*networking.VirtualService).Tcp {
		path := fmt.Sprintf("spec.tcp[%d]", i)
		route := snapshot.TCPRoute{Resource: o.String() + " " + path}
		matches := r.Match
		if len(matches) == 0 {
			matches = []*networking.L4MatchAttributes{{}}
		}
		for _, m := range matches {
			if !c.concerns(m, gateway, o.Meta.Namespace) {
				continue
			}
			route.Port, route.Subnets = uint16(m.Port), m.DestinationSubnets //nolint:gosec // api validates the range
			route.Destinations = c.streamDestinations(o, path, r.Route, gateway)
			routes = append(routes, route)
		}
	}
	return routes
}

// tlsRoutes are the tls rules of a VirtualService, with those of their server names that patterns have, too; nil has all.
func (c *compiler) tlsRoutes(o *api.Object, gateway string, patterns []string) []snapshot.TLSRoute {
	var routes []snapshot.TLSRoute
	for i, r := range o.Spec.(*networking.VirtualService).Tls {
		path := fmt.Sprintf("spec.tls[%d]", i)
		for _, m := range r.Match {
			names := serverNames(m.SniHosts, patterns)
			if !c.concerns(m, gateway, o.Meta.Namespace) || len(names) == 0 {
				continue
			}
			routes = append(routes, snapshot.TLSRoute{ServerNames: names, TCPRoute: snapshot.TCPRoute{
				Resource: o.String() + " " + path, Port: uint16(m.Port), Subnets: m.DestinationSubnets, //nolint:gosec // api validates the range
				Destinations: c.streamDestinations(o, path, r.Route, gateway),
			}})
		}
	}
	return routes
}

func serverNames(names, patterns []string) (out []string) {
	for _, name := range names {
		name = strings.ToLower(name)
		if patterns == nil {
			out = append(out, name)
		}
		for _, pattern := range patterns {
			if both, ok := intersect(name, strings.ToLower(pattern)); ok {
				out = append(out, both)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// concerns decides the conditions of a match that are about the proxy itself.
func (c *compiler) concerns(m interface {
	GetGateways() []string
	GetSourceNamespace() string
	GetSourceLabels() map[string]string
}, gateway, namespace string) bool {
	return (len(m.GetGateways()) == 0 || bound(m.GetGateways(), gateway, namespace)) &&
		(m.GetSourceNamespace() == "" || m.GetSourceNamespace() == c.proxy.Namespace) && mesh.Selects(m.GetSourceLabels(), c.proxy.Labels)
}

func (c *compiler) streamDestinations(o *api.Object, path string, in []*networking.RouteDestination, gateway string) []snapshot.Destination {
	var out []snapshot.Destination
	for i, d := range in {
		weight := uint32(d.Weight) //nolint:gosec // api validates the range
		if len(in) == 1 {
			weight = 1
		}
		if weight == 0 {
			continue
		}
		dest := c.destination(o, fmt.Sprintf("%s.route[%d].destination", path, i), d.Destination, gateway)
		dest.Weight = weight
		out = append(out, dest)
	}
	return out
}

// streamServer adds to a gateway's port the routes of a server that passes connections on as they come.
func (c *compiler) streamServer(out *snapshot.GatewayServer, gateway *api.Object, server *networking.Server) {
	if out.Protocol == mesh.ProtocolTCP {
		out.TCPRoutes = append(out.TCPRoutes, c.serverTCPRoutes(gateway, server)...)
		return
	}
	var patterns []string
	for _, host := range server.Hosts {
		_, pattern := api.SplitGatewayHost(host)
		patterns = append(patterns, pattern)
	}
	c.ofServer(gateway, server, func(o *api.Object, name string) {
		out.TLSRoutes = append(out.TLSRoutes, c.tlsRoutes(o, name, patterns)...)
	})
}

// serverTCPRoutes are the tcp rules that a gateway's server has.
func (c *compiler) serverTCPRoutes(gateway *api.Object, server *networking.Server) (routes []snapshot.TCPRoute) {
	c.ofServer(gateway, server, func(o *api.Object, name string) { routes = append(routes, c.tcpRoutes(o, name)...) })
	return routes
}

// ofServer visits the VirtualServices that name the gateway and have a host in common with the server.
func (c *compiler) ofServer(gateway *api.Object, server *networking.Server, visit func(o *api.Object, gateway string)) {
	name := gateway.Meta.Namespace + "/" + gateway.Meta.Name
	for _, o := range c.virtualServices {
		vs := o.Spec.(*networking.VirtualService)
		if bound(vs.Gateways, name, o.Meta.Namespace) && visible(o, c.proxy.Namespace) && len(c.serverDomains(gateway, server, o)) > 0 {
			visit(o, name)
		}
	}
}

// serverProtocol is how a gateway's port is served. Versions of HTTP are told apart as they come.
func serverProtocol(port *networking.Port) mesh.Protocol {
	switch p := strings.ToUpper(port.Protocol); p {
	case "TCP", "MONGO", "MYSQL", "REDIS":
		return mesh.ProtocolTCP
	case "HTTPS", "TLS":
		return mesh.ProtocolTLS
	}
	return mesh.ProtocolHTTP
}

// conflict notes that a server can't be opened beside an older one that speaks something else at the same port.
func (c *compiler) conflict(gateway *api.Object, i int, have, want mesh.Protocol) {
	c.problem(gateway, fmt.Sprintf("spec.servers[%d].port.protocol", i), fmt.Sprintf(
		"an older server has this port for %s already; this one, for %s, is not opened", cmp.Or(have, "http"), cmp.Or(want, "http")))
}
