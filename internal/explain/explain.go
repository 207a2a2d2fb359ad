// Package explain tells what a proxy would do with a request, and why: the decision of the very tables that proxies are
// built of, from the snapshot of a running proxy or one compiled from files.
package explain

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authn"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/table"
)

// Request is what is asked about.
type Request struct {
	Method  string // default GET
	URL     string // http://reviews:9080/reviews/0; or grpc://host:port/service/method; or, of bytes, tcp://host:port or tls://host:port
	Headers []string
	// Claims are those of a token that was verified; nil is no token.
	Claims map[string]any
}

// Explanation is what happens to a request. What does not apply is null or empty.
type Explanation struct {
	// Listener is where the request meets the proxy: outbound, or a gateway's port.
	Listener    string `json:"listener"`
	VirtualHost string `json:"virtualHost"`
	// Rule is the object and the path in it that decided; empty where no object says anything and the service's
	// endpoints are used as they are.
	Rule string `json:"rule"`
	// Destination, Subset and Port are where it goes; of several weighted ones, the heaviest, the first of these.
	Destination string `json:"destination"`
	Subset      string `json:"subset"`
	Port        uint16 `json:"port,omitempty"`
	// Endpoints are the addresses to choose from at Destination.
	Endpoints []string `json:"endpoints"`
	// Weights are all destinations with their share.
	Weights []Weight `json:"weights"`
	// Status is the mesh's own answer: of a redirect, a direct response, or an error that says why in Reason. Null where
	// an application answers.
	Status *int `json:"status"`
	// GRPCStatus is that answer to a gRPC client, whose Status is 200 then, as on the wire.
	GRPCStatus *int `json:"grpcStatus,omitempty"`

	Redirect string   `json:"redirect"` // the Location
	Rewrite  *Rewrite `json:"rewrite"`
	Timeout  string   `json:"timeout"`
	Retries  *Retries `json:"retries"`
	Fault    *Fault   `json:"fault"`
	Mirrors  []Mirror `json:"mirrors,omitempty"`
	// Headers are the request's fields as they are sent, where a rule changes them.
	Headers []string `json:"headers,omitempty"`
	// Policies are the access rules that decide about it, each the object and the path of the rule in it.
	Policies []string `json:"policies"`
	// Reason is the decision as a sentence.
	Reason string `json:"reason"`
	// Steps are the rules that were tried, in order, and why each but the last did not match.
	Steps []Step `json:"steps"`

	members []Member
}

// Members are Endpoints with their names, for people.
func (e *Explanation) Members() []Member { return e.members }

// Weight is one destination of a weighted route.
type Weight struct {
	Destination string   `json:"destination"`
	Subset      string   `json:"subset"`
	Port        uint16   `json:"port,omitempty"`
	Weight      uint32   `json:"weight"`
	Endpoints   []string `json:"endpoints"`
}

// Rewrite is what of the request is changed; empty is as it was.
type Rewrite struct {
	URI       string `json:"uri,omitempty"`
	Authority string `json:"authority,omitempty"`
}

// Retries are those in force.
type Retries struct {
	Attempts      uint32   `json:"attempts"`
	PerTryTimeout string   `json:"perTryTimeout,omitempty"`
	RetryOn       []string `json:"retryOn,omitempty"`
}

// Fault is injected into a share of the requests, in percent.
type Fault struct {
	Delay *Delay `json:"delay,omitempty"`
	Abort *Abort `json:"abort,omitempty"`
}

// Delay is a fault.
type Delay struct {
	Percentage float64 `json:"percentage"`
	FixedDelay string  `json:"fixedDelay"`
}

// Abort is a fault.
type Abort struct {
	Percentage float64 `json:"percentage"`
	HTTPStatus int     `json:"httpStatus,omitempty"`
	GRPCStatus *int    `json:"grpcStatus,omitempty"`
}

// Mirror is a copy of a share of the requests, in percent.
type Mirror struct {
	Destination string  `json:"destination"`
	Subset      string  `json:"subset,omitempty"`
	Percentage  float64 `json:"percentage"`
}

// Step is one rule that was tried.
type Step struct {
	Rule    string `json:"rule"`
	Matched bool   `json:"matched"`
	// Reasons are, one for each of the rule's matches, the first condition that did not hold.
	Reasons []string `json:"reasons,omitempty"`
}

// Member is an endpoint with its name and the identity that it must prove, which is empty for plain text.
type Member struct{ Name, Address, Identity string }

// Snapshot explains a request to the proxy that s is the snapshot of. The request comes to a gateway from outside, to a
// sidecar from its own application.
func Snapshot(s *snapshot.Snapshot, r Request) (*Explanation, error) { return explain(s, r, nil) }

// explain does so; targets are ports that stand behind others.
func explain(s *snapshot.Snapshot, r Request, targets map[netip.AddrPort]uint16) (*Explanation, error) {
	s, names := standIns(s)
	t, err := table.Build(s, nil)
	if err != nil {
		return nil, err
	}
	x := &explainer{t: t, q: &route.Request{}, gateways: len(s.Gateways) > 0, targets: targets, names: names, e: &Explanation{Listener: "outbound", Endpoints: []string{}, Weights: []Weight{}, Policies: []string{}, Steps: []Step{}}}
	if c, ok, err := parseConnection(r.URL); ok {
		if err == nil {
			x.stream(s, c)
		}
		return x.e, err
	}
	q, dst, err := parse(grpcRequest(r))
	if err != nil {
		return nil, err
	}
	x.q, x.dst = q, dst
	kind, _ := q.Header.First(http1.ContentType)
	x.grpc = filter.IsGRPC(kind)
	if x.gateways {
		x.gateway(dst)
	} else {
		x.outbound(dst)
	}
	return x.e, nil
}

// parse makes of r what a codec makes of bytes. A name has no address here: the decision is then by the name alone, as it
// is for every address that the name has.
func parse(r Request) (*route.Request, netip.AddrPort, error) {
	u, target, err := split(r.URL)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	port := map[string]uint16{"http": 80, "https": 443}[u.Scheme]
	if port == 0 || u.Host == "" {
		return nil, netip.AddrPort{}, fmt.Errorf("%q is no URL of a request, want http://host:port/path, grpc://host:port/service/method, tcp://host:port or tls://host:port", r.URL)
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("%s: port: %w", r.URL, err)
		}
		port = uint16(n)
	}
	q := &route.Request{Method: []byte(r.Method), Path: []byte(target), Authority: []byte(u.Host), Scheme: u.Scheme, Port: port}
	if r.Method == "" {
		q.Method = []byte(http.MethodGet)
	}
	if r.Claims != nil {
		q.Auth = authn.Auth(r.Claims)
	}
	for _, h := range r.Headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, netip.AddrPort{}, fmt.Errorf("header %q: want name: value", h)
		}
		if strings.EqualFold(name, "host") {
			q.Authority = []byte(strings.TrimSpace(value))
			continue
		}
		f, err := http1.ParseField([]byte(name), []byte(strings.TrimSpace(value)))
		if err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("header %q: %w", h, err)
		}
		q.Header = append(q.Header, f)
	}
	if !http1.ValidMethod(q.Method) || !http1.ValidPath(q.Method, q.Path) || !http1.ValidAuthority(q.Authority) {
		return nil, netip.AddrPort{}, errors.New("method, path or host is none that a proxy lets pass")
	}
	ip, _ := netip.ParseAddr(u.Hostname()) // else the zero address, which is nobody's
	return q, netip.AddrPortFrom(ip, port), nil
}

// split parses a URL up to its path; the rest is the target as a client would write it, however it is spelled.
func split(text string) (base *url.URL, target string, err error) {
	scheme := strings.Index(text, "://")
	if scheme < 0 {
		return nil, "", fmt.Errorf("%q is no URL of a request, want http://host:port/path", text)
	}
	target = "/"
	if i := strings.IndexAny(text[scheme+3:], "/?#\\"); i >= 0 {
		text, target = text[:scheme+3+i], text[scheme+3+i:]
	}
	if target, _, _ = strings.Cut(target, "#"); target == "" || target[0] != '/' {
		target = "/" + target
	}
	base, err = url.Parse(text)
	return base, target, err
}

type explainer struct {
	t        *table.Table
	q        *route.Request
	dst      netip.AddrPort // that is dialled, as far as the URL says it
	gateways bool           // it is a gateway's proxy
	grpc     bool           // the request is of gRPC
	targets  map[netip.AddrPort]uint16
	names    map[netip.Addr]string // that stand-ins for addresses stand for
	e        *Explanation
}

func (x *explainer) gateway(dst netip.AddrPort) {
	x.e.Listener = fmt.Sprintf("gateway port %d", dst.Port())
	server := ""
	if x.t.GatewayProtocol(dst.Port()) == mesh.ProtocolTLS {
		s := x.t.GatewayTLS(dst.Port(), string(table.Hostname(nil, x.q.Authority)))
		if s == nil {
			x.e.Reason = fmt.Sprintf("no Gateway of this proxy has a server on port %d that ends TLS for the name %s: it passes through, or is refused", dst.Port(), x.q.Authority)
			return
		}
		server = s.Name
		x.e.Listener += ", " + s.Resource
	}
	vh := x.t.Gateway(dst.Port(), server, x.q.Authority)
	if vh == nil {
		x.answer(http.StatusNotFound, "no Gateway of this proxy has a server for %s on port %d, or no VirtualService is bound to it", x.q.Authority, dst.Port())
		return
	}
	x.follow(vh)
}

func (x *explainer) outbound(dst netip.AddrPort) {
	out := x.t.Outbound(dst, x.q.Authority)
	switch {
	case out.VirtualHost != nil:
		x.follow(out.VirtualHost)
	case x.t.BlackHole(out.Workload):
		x.answer(http.StatusBadGateway, "%s is no service that the mesh knows, and a Sidecar allows only such: a ServiceEntry makes it one", x.q.Authority)
	case out.Workload != nil:
		x.e.Endpoints = append(x.e.Endpoints, dst.String())
		x.e.Reason = fmt.Sprintf("goes to workload %s, which has that address; it is none of the services that the request names", out.Workload.Name)
	default:
		x.e.Reason = fmt.Sprintf("%s is nothing that the mesh knows: the request goes where it was sent, in plain text", x.q.Authority)
	}
}

// follow explains the first route of a virtual host that matches.
func (x *explainer) follow(vh *table.VirtualHost) {
	x.e.VirtualHost = vh.Name
	var r *route.Route
	for _, s := range vh.Routes.Explain(x.q) {
		x.e.Steps = append(x.e.Steps, Step{Rule: ruleName(s.Route), Matched: s.Matched, Reasons: s.Reasons})
		if s.Matched {
			r = s.Route
		}
	}
	if r == nil {
		x.answer(http.StatusNotFound, "no rule of %s matches", vh.Name)
		return
	}
	x.e.Rule = r.Resource
	x.rules(r)
	if len(r.Destinations) > 0 {
		x.destinations(r)
	}
	x.run(r)
}

func ruleName(r *route.Route) string {
	if r.Resource == "" {
		return "the service as it is"
	}
	return r.Resource
}

func (x *explainer) answer(status int, format string, args ...any) {
	x.answerAs(status, filter.GRPCOf(status), format, args...)
}

// answerAs is an answer with a status of HTTP, or of gRPC where that is asked for.
func (x *explainer) answerAs(status, grpc int, format string, args ...any) {
	what := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if x.grpc {
		status, x.e.GRPCStatus = http.StatusOK, &grpc
		what = fmt.Sprintf("gRPC status %d", grpc)
	}
	x.e.Status = &status
	x.e.Reason = fmt.Sprintf("answered with %s: ", what) + fmt.Sprintf(format, args...)
}

// rules copies what the route does besides.
func (x *explainer) rules(r *route.Route) {
	rules := r.Rules
	if rules.Timeout > 0 {
		x.e.Timeout = time.Duration(rules.Timeout).String()
	}
	if len(r.Destinations) > 0 {
		x.e.Retries = retriesOf(rules.Retries)
	}
	x.e.Fault = faultOf(rules.Fault)
	for _, m := range rules.Mirrors {
		x.e.Mirrors = append(x.e.Mirrors, Mirror{Destination: m.Service, Subset: m.Subset, Percentage: percent(m.Share)})
	}
}

func retriesOf(r *snapshot.Retries) *Retries {
	if r == nil {
		return nil // Istio's defaults
	}
	out := &Retries{Attempts: r.Attempts, RetryOn: r.On}
	if r.PerTry > 0 {
		out.PerTryTimeout = time.Duration(r.PerTry).String()
	}
	for _, s := range r.Statuses {
		out.RetryOn = append(out.RetryOn, strconv.Itoa(s))
	}
	return out
}

func faultOf(f *snapshot.Fault) *Fault {
	if f == nil {
		return nil
	}
	out := &Fault{}
	if d := f.Delay; d != nil {
		out.Delay = &Delay{percent(d.Share), time.Duration(d.Fixed).String()}
	}
	if a := f.Abort; a != nil {
		out.Abort = &Abort{percent(a.Share), a.HTTPStatus, a.GRPCStatus}
	}
	return out
}

func percent(share snapshot.Million) float64 { return float64(share) / 10_000 }

func (x *explainer) destinations(r *route.Route) {
	for i := range r.Destinations {
		d := &r.Destinations[i]
		addresses, _ := x.endpoints(d)
		x.e.Weights = append(x.e.Weights, Weight{d.Service, d.Subset, x.port(d), d.Weight, addresses})
	}
	d := heaviest(r)
	x.e.Destination, x.e.Subset, x.e.Port = d.Service, d.Subset, x.port(d)
	x.e.Endpoints, x.e.members = x.endpoints(d)
}

func heaviest(r *route.Route) *route.Destination {
	best := &r.Destinations[0]
	for i := range r.Destinations {
		if r.Destinations[i].Weight > best.Weight {
			best = &r.Destinations[i]
		}
	}
	return best
}

func (x *explainer) port(d *route.Destination) uint16 {
	if d.Port != 0 {
		return d.Port
	}
	return x.q.Port
}

func (x *explainer) endpoints(d *route.Destination) ([]string, []Member) {
	addresses, members := []string{}, []Member(nil)
	if c := x.t.Cluster(d.Service, d.Subset); c != nil {
		for _, e := range c.Endpoints {
			at := e.Target(x.t.Service(d.Service).Target(x.port(d))).Addr
			if p, ok := x.targets[at]; ok {
				at = netip.AddrPortFrom(e.Addr, p)
			}
			a := at.String()
			if name, ok := x.names[at.Addr()]; ok {
				a = net.JoinHostPort(name, strconv.Itoa(int(at.Port())))
			}
			addresses = append(addresses, a)
			members = append(members, Member{e.Workload.Name, a, e.Identity})
		}
	}
	return addresses, members
}

// run carries the request through the route's filters, up to where it would be sent. A fault that is chance is left out.
func (x *explainer) run(r *route.Route) {
	before := *x.q
	before.Header = slices.Clone(x.q.Header)
	fx := &filter.Exchange{}
	fx.Reset(&exchange.Exchange{}, sink{})
	fx.Request = *x.q
	x.handler(r).Serve(fx)
	if fx.Response.Local != nil {
		x.local(&fx.Response)
		return
	}
	x.changes(&before, &fx.Request)
	x.sent()
}

func (x *explainer) handler(r *route.Route) filter.Handler {
	var destination *snapshot.Destination
	h := r.Handler
	if len(r.Destinations) > 0 {
		d := heaviest(r)
		h, destination = d.Handler, &snapshot.Destination{Headers: d.Headers}
	}
	rules := *r.Rules
	if f := rules.Fault; f == nil || f.Abort != nil && f.Abort.Share >= always {
		return h
	}
	rules.Fault = nil
	if without, err := filter.Chain(&snapshot.Route{RouteRules: rules}, destination); err == nil { // the table was made of these rules
		return without
	}
	return h
}

// always is the share of all requests.
const always snapshot.Million = 1_000_000

func (x *explainer) local(response *filter.Response) {
	grpc := filter.GRPCOf(response.Status)
	if response.Local.GRPCSet {
		grpc = response.Local.GRPC
	}
	x.answerAs(response.Status, grpc, "by %s itself", x.e.Rule)
	if x.e.Fault != nil {
		x.answerAs(response.Status, grpc, "the fault that %s injects", x.e.Rule)
	}
	for _, f := range response.Header {
		if http1.EqualFold(f.Name, "location") {
			x.e.Redirect = string(f.Value)
			x.answerAs(response.Status, grpc, "redirected to %s", f.Value)
		}
	}
}

// changes notes what the filters have made of the request.
func (x *explainer) changes(before, after *route.Request) {
	w := Rewrite{}
	if string(before.Path) != string(after.Path) {
		w.URI = string(after.Path)
	}
	if string(before.Authority) != string(after.Authority) {
		w.Authority = string(after.Authority)
	}
	if w != (Rewrite{}) {
		x.e.Rewrite = &w
	}
	if was, is := fields(before.Header), fields(after.Header); !slices.Equal(was, is) {
		x.e.Headers = is
	}
}

func fields(h http1.Header) []string {
	var list []string
	for _, f := range h {
		list = append(list, string(f.Name)+": "+string(f.Value))
	}
	return list
}

// sent says how the request leaves, or why it can't.
func (x *explainer) sent() {
	e := x.e
	where := e.Destination
	if e.Subset != "" {
		where += " subset " + e.Subset
	}
	switch {
	case x.t.Service(e.Destination) == nil:
		x.answer(http.StatusServiceUnavailable, "%s is no service that this proxy can reach", e.Destination)
	case x.t.Cluster(e.Destination, e.Subset) == nil:
		x.answer(http.StatusServiceUnavailable, "no DestinationRule gives %s a subset %s", e.Destination, e.Subset)
	case x.t.ClusterAt(e.Destination, e.Subset, e.Port).Passthrough():
		x.passthrough(where)
	case len(e.Endpoints) == 0:
		x.answer(http.StatusServiceUnavailable, "no workload of %s runs and is healthy", where)
	case len(e.Weights) > 1:
		e.Reason = fmt.Sprintf("divided by weight among %d destinations", len(e.Weights))
	default:
		e.Reason = "goes to " + where
	}
}

// passthrough explains a request that goes to the very address that was dialled. At a gateway, that is the gateway's own.
func (x *explainer) passthrough(where string) {
	if x.gateways {
		x.answer(http.StatusServiceUnavailable, "%s is reached at the address that a client dials, and at a gateway that is the gateway", where)
		return
	}
	x.e.Reason = "goes to the address that was dialled, as one of " + where
	if x.dst.Addr().IsValid() {
		x.e.Endpoints = []string{x.dst.String()}
	}
}

// sink is where the chain ends: nothing is sent.
type sink struct{}

func (sink) Try(x *filter.Exchange) { x.Response = filter.Response{Status: http.StatusOK} }

func (sink) Awaits(*filter.Exchange) bool { return false }
func (sink) Again(*filter.Exchange) bool  { return false }

func (sink) Wait(*filter.Exchange, time.Duration) bool { return true }
