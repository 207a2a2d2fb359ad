package explain

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/route"
)

// connection is what is asked about with tcp://host:port or tls://host:port, the latter with the host as its server name.
type connection struct {
	tls  bool
	host string
	port uint16
}

// parseConnection is false for a URL of a request.
func parseConnection(text string) (connection, bool, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "tcp" && u.Scheme != "tls" {
		return connection{}, false, nil //nolint:nilerr // parse says what is wrong with it
	}
	c := connection{tls: u.Scheme == "tls", host: strings.ToLower(u.Hostname())}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if c.port = uint16(n); err != nil || n == 0 || c.host == "" || strings.Trim(u.Path, "/") != "" {
		return c, true, fmt.Errorf("%q is no connection, want %s://host:port", text, u.Scheme)
	}
	return c, true, nil
}

// stream explains where the bytes of a connection go.
func (x *explainer) stream(s *snapshot.Snapshot, c connection) {
	serverName := ""
	if c.tls {
		serverName = c.host
	}
	dst := netip.AddrPortFrom(addressOf(s, c.host), c.port)
	var r *snapshot.TCPRoute
	if len(s.Gateways) > 0 {
		x.e.Listener = fmt.Sprintf("gateway port %d", c.port)
		if r = x.t.GatewayStreamRoute(dst, c.tls, serverName); r == nil {
			x.refused("no route of a Gateway takes it")
			return
		}
	} else {
		r = x.t.StreamRoute(dst, c.tls, serverName)
	}
	if r == nil {
		x.unrouted(s, c, dst)
		return
	}
	x.e.Rule = r.Resource
	x.e.Steps = append(x.e.Steps, Step{Rule: r.Resource, Matched: true})
	routed := &route.Route{}
	for _, d := range r.Destinations {
		routed.Destinations = append(routed.Destinations, route.Destination{Service: d.Service, Subset: d.Subset, Port: d.Port, Weight: d.Weight})
	}
	x.q.Port, x.dst = c.port, netip.AddrPortFrom(dst.Addr(), c.port)
	x.destinations(routed)
	x.sent()
	if x.e.Status != nil {
		_, why, _ := strings.Cut(x.e.Reason, ": ")
		x.refused(why)
	}
}

// refused says why a connection is reset: it has no status.
func (x *explainer) refused(why string) {
	x.e.Status, x.e.GRPCStatus = nil, nil
	x.e.Reason = "reset: " + why
}

// unrouted explains a connection that no rule takes: it goes to the very address that was dialled.
func (x *explainer) unrouted(s *snapshot.Snapshot, c connection, dst netip.AddrPort) {
	w := x.t.Workload(dst.Addr())
	switch {
	case x.t.BlackHole(w):
		x.refused(fmt.Sprintf("%s is nothing that the mesh knows, and the application may reach nothing else", c.host))
	case w == nil:
		x.e.Reason = fmt.Sprintf("%s is nothing that the mesh knows: the connection goes where it was opened to, as it is", c.host)
	default:
		if host := serviceOf(s, c.host); host != "" {
			x.e.Destination = host
		}
		x.e.Port = c.port
		identity := ""
		if !w.PlainText && !slices.Contains(w.PlainPorts, c.port) {
			identity = w.Identity
		}
		x.e.Endpoints, x.e.members = []string{dst.String()}, []Member{{w.Name, dst.String(), identity}}
		x.e.Reason = "goes to the address that the name has, such as workload " + w.Name
	}
}

// serviceOf is the service of a name that clients use.
func serviceOf(s *snapshot.Snapshot, name string) string {
	for _, v := range s.VirtualHosts {
		if slices.Contains(v.Domains, name) && v.Service != "" {
			return v.Service
		}
	}
	for _, v := range s.Services {
		if v.Host == name || v.Name == name {
			return v.Host
		}
	}
	return ""
}

// addressOf is an address that name has, as DNS would say: its own, or that of a workload of the service.
func addressOf(s *snapshot.Snapshot, name string) netip.Addr {
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip
	}
	for _, v := range s.VirtualHosts {
		if slices.Contains(v.Domains, name) && len(v.Addresses) > 0 {
			ip, _ := netip.ParseAddr(v.Addresses[0]) // the table was built of it
			return ip
		}
	}
	host := serviceOf(s, name)
	for _, w := range s.Workloads {
		if host != "" && slices.Contains(w.Services, host) && len(w.Addresses) > 0 {
			ip, _ := netip.ParseAddr(w.Addresses[0]) // the table was built of it
			return ip
		}
	}
	return netip.Addr{}
}

// grpcRequest makes of grpc://host:port/package.Service/Method the request that it is.
func grpcRequest(r Request) Request {
	rest, ok := strings.CutPrefix(r.URL, "grpc://")
	if !ok {
		return r
	}
	r.URL = "http://" + rest
	r.Method = http.MethodPost
	if !slices.ContainsFunc(r.Headers, func(h string) bool { return strings.HasPrefix(strings.ToLower(h), "content-type:") }) {
		r.Headers = append(slices.Clone(r.Headers), "content-type: application/grpc")
	}
	return r
}
