package compile

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// rulesOf is what a route does besides choosing a destination. path is that of the route.
func (c *compiler) rulesOf(o *api.Object, path string, r *networking.HTTPRoute, gateway string) snapshot.RouteRules {
	rules := snapshot.RouteRules{
		Redirect: redirectOf(r.Redirect), DirectResponse: directResponseOf(r.DirectResponse),
		Fault: faultOf(r.Fault), CORS: corsOf(r.CorsPolicy), Rewrite: rewriteOf(r.Rewrite), Headers: headersOf(r.Headers),
	}
	if rules.Redirect != nil || rules.DirectResponse != nil { // api.Unsent
		rules.Headers = headersOf(&networking.Headers{Response: r.GetHeaders().GetResponse()})
		return rules
	}
	rules.Mirrors, rules.Timeout, rules.Retries = c.mirrors(o, path, r, gateway), durationOf(r.Timeout), retriesOf(r.Retries)
	return rules
}

func durationOf(d *durationpb.Duration) snapshot.Duration { return snapshot.Duration(d.AsDuration()) }

func redirectOf(r *networking.HTTPRedirect) *snapshot.Redirect {
	if r == nil {
		return nil
	}
	out := &snapshot.Redirect{
		Status: int(r.RedirectCode), Scheme: r.Scheme, Authority: r.Authority, URI: r.Uri, Prefix: r.PrefixRewrite,
		Port: uint16(r.GetPort()), //nolint:gosec // api validates the range
	}
	if out.Status == 0 {
		out.Status = http.StatusMovedPermanently
	}
	if _, derived := r.RedirectPort.(*networking.HTTPRedirect_DerivePort); derived {
		out.DerivePort = snapshot.PortOfScheme
		if r.GetDerivePort() == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.DerivePort = snapshot.PortOfRequest
		}
	}
	return out
}

func directResponseOf(r *networking.HTTPDirectResponse) *snapshot.DirectResponse {
	if r == nil {
		return nil
	}
	out := &snapshot.DirectResponse{Status: int(r.Status), Body: r.Body.GetBytes()}
	if text := r.Body.GetString_(); text != "" {
		out.Body = []byte(text)
	}
	return out
}

// million is a percentage as a share. One that is missing is none.
func million(p *networking.Percent) snapshot.Million {
	return snapshot.Million(math.Round(p.GetValue() * 10_000))
}

func faultOf(f *networking.HTTPFaultInjection) *snapshot.Fault {
	if f == nil {
		return nil
	}
	var out snapshot.Fault
	if d := f.Delay; d.GetHttpDelayType() != nil {
		out.Delay = &snapshot.Delay{Share: million(d.Percentage), Fixed: durationOf(d.GetFixedDelay())}
	}
	if a := f.Abort; a != nil && a.ErrorType != nil {
		out.Abort = &snapshot.Abort{Share: million(a.Percentage), HTTPStatus: int(a.GetHttpStatus())}
		if n, ok := api.GRPCStatus(a.GetGrpcStatus()); ok {
			out.Abort.GRPCStatus = &n
		}
	}
	if out == (snapshot.Fault{}) {
		return nil
	}
	return &out
}

func rewriteOf(r *networking.HTTPRewrite) *snapshot.Rewrite {
	if r == nil {
		return nil
	}
	return &snapshot.Rewrite{
		URI: r.Uri, Authority: r.Authority, Regex: r.UriRegexRewrite.GetMatch(), Substitution: r.UriRegexRewrite.GetRewrite(),
	}
}

func retriesOf(r *networking.HTTPRetry) *snapshot.Retries {
	if r == nil {
		return nil
	}
	out := &snapshot.Retries{
		Attempts: uint32(r.Attempts), PerTry: durationOf(r.PerTryTimeout), Backoff: durationOf(r.Backoff), //nolint:gosec // api validates the range
		SameHost: r.RetryIgnorePreviousHosts != nil && !r.RetryIgnorePreviousHosts.Value,
	}
	for _, condition := range strings.Split(r.RetryOn, ",") {
		condition = strings.TrimSpace(condition)
		if status, err := strconv.Atoi(condition); err == nil {
			out.Statuses = append(out.Statuses, status)
		} else if condition != "" {
			out.On = append(out.On, condition)
		}
	}
	return out
}

func corsOf(p *networking.CorsPolicy) *snapshot.CORS {
	if p == nil {
		return nil
	}
	out := &snapshot.CORS{
		Methods: strings.Join(p.AllowMethods, ","), AllowHeaders: strings.Join(p.AllowHeaders, ","), ExposeHeaders: strings.Join(p.ExposeHeaders, ","),
		Credentials: p.AllowCredentials.GetValue(), IgnoreUnmatched: p.UnmatchedPreflights == networking.CorsPolicy_IGNORE,
	}
	if p.MaxAge != nil {
		out.MaxAge = strconv.FormatInt(int64(p.MaxAge.AsDuration()/time.Second), 10)
	}
	for _, origin := range p.AllowOrigins {
		out.Origins = append(out.Origins, anyIfStar(*stringMatch(origin)))
	}
	return out
}

// anyIfStar makes the origin "*" the one that covers all.
func anyIfStar(m snapshot.StringMatch) snapshot.StringMatch {
	if m.Exact == "*" {
		return snapshot.StringMatch{Regex: ".*"}
	}
	return m
}

func headersOf(h *networking.Headers) *snapshot.Headers {
	out := &snapshot.Headers{Request: operationsOf(h.GetRequest()), Response: operationsOf(h.GetResponse())}
	if isEmpty(out.Request) && isEmpty(out.Response) {
		return nil
	}
	return out
}

func isEmpty(ops snapshot.HeaderOps) bool { return len(ops.Remove)+len(ops.Set)+len(ops.Add) == 0 }

func operationsOf(ops *networking.Headers_HeaderOperations) snapshot.HeaderOps {
	out := snapshot.HeaderOps{Set: fieldsOf(ops.GetSet()), Add: fieldsOf(ops.GetAdd())}
	if remove := ops.GetRemove(); len(remove) > 0 {
		out.Remove = slices.Sorted(slices.Values(remove))
	}
	return out
}

// fieldsOf are header fields by name. In their values %% is Envoy's way to write a percent sign.
func fieldsOf(in map[string]string) []snapshot.Field {
	var out []snapshot.Field
	for _, name := range slices.Sorted(maps.Keys(in)) {
		out = append(out, snapshot.Field{Name: name, Value: strings.ReplaceAll(in[name], "%%", "%")})
	}
	return out
}

// mirrors are those with a share: all requests, where none is given.
func (c *compiler) mirrors(o *api.Object, path string, r *networking.HTTPRoute, gateway string) []snapshot.Mirror {
	var out []snapshot.Mirror
	add := func(path string, d *networking.Destination, share snapshot.Million) {
		if share > 0 {
			to := c.destination(o, path, d, gateway)
			out = append(out, snapshot.Mirror{Service: to.Service, Subset: to.Subset, Port: to.Port, Share: share})
		}
	}
	const all = 100 * 10_000
	if r.Mirror != nil {
		share := snapshot.Million(all)
		if r.MirrorPercentage != nil {
			share = million(r.MirrorPercentage)
		}
		add(path+".mirror", r.Mirror, share)
	}
	for i, m := range r.Mirrors {
		share := snapshot.Million(all)
		if m.Percentage != nil {
			share = million(m.Percentage)
		}
		add(fmt.Sprintf("%s.mirrors[%d].destination", path, i), m.Destination, share)
	}
	return out
}

// delegated are the rules of the VirtualService that a rule of o hands its requests to, narrowed to what both match. What
// the delegate says stands, and what it does not say is the root's
// (istio.io/docs/reference/config/networking/virtual-service/#Delegate).
func (c *compiler) delegated(o *api.Object, path string, root *networking.HTTPRoute, matches []snapshot.Match, gateway string) []snapshot.Route {
	to := c.delegate(o, root.Delegate)
	if to == nil {
		c.problem(o, path+".delegate.name", noDelegate(o, root.Delegate))
		return nil
	}
	above := c.rulesOf(o, path, root, gateway)
	var routes []snapshot.Route
	for i, r := range c.routes(to, gateway) {
		merged, ok := intersectMatches(matches, r.Matches)
		if !ok {
			c.problem(to, fmt.Sprintf("spec.http[%d].match", i), fmt.Sprintf("nothing can match both this and the rule that delegates, %s %s", o, path))
			continue
		}
		r.Matches = merged
		below := &r.RouteRules
		below.Fault, below.CORS, below.Rewrite, below.Retries = cmp.Or(below.Fault, above.Fault), cmp.Or(below.CORS, above.CORS), cmp.Or(below.Rewrite, above.Rewrite), cmp.Or(below.Retries, above.Retries)
		below.Timeout = cmp.Or(below.Timeout, above.Timeout)
		below.Headers = cmp.Or(below.Headers, above.Headers)
		if below.Mirrors == nil {
			below.Mirrors = above.Mirrors
		}
		if len(r.Destinations) == 0 {
			// It answers by itself: nothing is sent, copied or tried again.
			below.Fault, below.Rewrite, below.Retries, below.Mirrors, below.Timeout = nil, nil, nil, nil, 0
		}
		routes = append(routes, r)
	}
	return routes
}

func delegateName(o *api.Object, d *networking.Delegate) string {
	return cmp.Or(d.Namespace, o.Meta.Namespace) + "/" + d.Name
}

func (c *compiler) delegate(o *api.Object, d *networking.Delegate) *api.Object {
	name := delegateName(o, d)
	i := slices.IndexFunc(c.delegates, func(to *api.Object) bool {
		return to.Meta.Namespace+"/"+to.Meta.Name == name && visible(to, o.Meta.Namespace)
	})
	if i < 0 {
		return nil
	}
	return c.delegates[i]
}

// intersectMatches are the conditions under which one of a and one of b hold. None in a list is everything; ok is false
// where nothing can fulfil both.
func intersectMatches(a, b []snapshot.Match) (both []snapshot.Match, ok bool) {
	if len(a) == 0 {
		return b, true
	}
	if len(b) == 0 {
		return a, true
	}
	for i := range a {
		for j := range b {
			if m, ok := intersectMatch(a[i], b[j]); ok {
				both = append(both, m)
			}
		}
	}
	return both, len(both) > 0
}

// intersectMatch holds where both do. A field that both have must be the same, but a path may be narrowed.
func intersectMatch(root, delegate snapshot.Match) (snapshot.Match, bool) {
	m := delegate
	ok := true
	m.URI, m.IgnoreURICase = delegate.URI, delegate.IgnoreURICase
	switch {
	case delegate.URI == nil:
		m.URI, m.IgnoreURICase = root.URI, root.IgnoreURICase
	case root.URI != nil:
		ok = root.IgnoreURICase == delegate.IgnoreURICase && narrows(*root.URI, *delegate.URI)
	}
	same := func(a, b *snapshot.StringMatch) *snapshot.StringMatch {
		ok = ok && (a == nil || b == nil || *a == *b)
		return cmp.Or(b, a)
	}
	m.Method, m.Authority, m.Scheme = same(root.Method, m.Method), same(root.Authority, m.Authority), same(root.Scheme, m.Scheme)
	ok = ok && (root.Port == 0 || m.Port == 0 || root.Port == m.Port)
	m.Port = cmp.Or(m.Port, root.Port)
	m.Headers, m.QueryParams = union(root.Headers, m.Headers), union(root.QueryParams, m.QueryParams)
	return m, ok
}

func narrows(root, delegate snapshot.StringMatch) bool {
	switch {
	case root == delegate:
		return true
	case root.Prefix == "":
		return false
	}
	return strings.HasPrefix(delegate.Exact, root.Prefix) || strings.HasPrefix(delegate.Prefix, root.Prefix)
}

// union are the conditions of both, which all have to hold.
func union(a, b []snapshot.HeaderMatch) []snapshot.HeaderMatch {
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, func(a, b snapshot.HeaderMatch) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
