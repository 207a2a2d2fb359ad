package api

import (
	"fmt"
	"maps"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1"
)

// maxDirectBody is the largest body of a directResponse, Istio's own limit.
const maxDirectBody = 1 << 20

func validateHTTPRoute(ps *Problems, path Path, route *networking.HTTPRoute) {
	for i, match := range route.GetMatch() {
		validateHTTPMatch(ps, path.At("match", i), match)
	}
	validateAnswerer(ps, path, route)
	validateWeights(ps, path.At("route"), route.GetRoute())
	validateRewrite(ps, path.At("rewrite"), route.GetRewrite())
	validateDuration(ps, path.At("timeout"), route.GetTimeout(), time.Millisecond)
	validateRetries(ps, path.At("retries"), route.GetRetries())
	validateFault(ps, path.At("fault"), route.GetFault())
	validateMirrors(ps, path, route)
	validateCORS(ps, path.At("corsPolicy"), route.GetCorsPolicy())
	validateHeaders(ps, path.At("headers"), route.GetHeaders())
	validateAuthorities(ps, path, route)
}

// validateAuthorities refuses two fields that both say which authority a request has.
func validateAuthorities(ps *Problems, path Path, route *networking.HTTPRoute) {
	first := ""
	if route.GetRewrite().GetAuthority() != "" {
		first = "rewrite.authority"
	}
	ops := route.GetHeaders().GetRequest()
	for _, f := range []struct {
		name   string
		fields map[string]string
	}{{"set", ops.GetSet()}, {"add", ops.GetAdd()}} {
		for _, name := range slices.Sorted(maps.Keys(f.fields)) {
			at := path.At("headers", "request", f.name, name)
			switch {
			case !isAuthorityName(name):
			case first != "":
				ps.invalid(at, fmt.Sprintf("want none beside %s, which says the authority already", first))
			default:
				first = "headers.request." + f.name + "." + name
			}
		}
	}
}

// validateAnswerer checks that exactly one thing answers, and that nothing is asked for that contradicts it.
func validateAnswerer(ps *Problems, path Path, route *networking.HTTPRoute) {
	var answers []string
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"delegate", route.GetDelegate() != nil}, {"directResponse", route.GetDirectResponse() != nil},
		{"redirect", route.GetRedirect() != nil}, {"route", len(route.GetRoute()) > 0},
	} {
		if f.set {
			answers = append(answers, f.name)
		}
	}
	switch len(answers) {
	case 0:
		ps.required(path.At("route"), "want at least one destination, or redirect, directResponse or delegate")
		return
	case 1:
	default:
		ps.invalid(path, "want only one of "+strings.Join(answers, ", "))
	}
	if r := route.GetRedirect(); r != nil {
		validateRedirect(ps, path.At("redirect"), r)
	}
	if r := route.GetDirectResponse(); r != nil {
		validateDirectResponse(ps, path.At("directResponse"), r)
	}
	if d := route.GetDelegate(); d != nil {
		validateDelegate(ps, path.At("delegate"), d)
		return
	}
	if len(route.GetRoute()) > 0 {
		return
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"fault", route.GetFault() != nil}, {"rewrite", route.GetRewrite() != nil},
	} {
		if f.set {
			ps.invalid(path.At(f.name), fmt.Sprintf("want none beside %s: nothing is sent to a destination", answers[0]))
		}
	}
}

// Unsent are the fields of a route that say how it sends requests on, where it answers by itself: Istio accepts and ignores them.
func Unsent(route *networking.HTTPRoute) (paths []string) {
	if route.GetRedirect() == nil && route.GetDirectResponse() == nil {
		return nil
	}
	for _, f := range []struct {
		path string
		set  bool
	}{
		{"timeout", route.GetTimeout() != nil}, {"retries", route.GetRetries() != nil}, {"mirror", route.GetMirror() != nil},
		{"mirrors", len(route.GetMirrors()) > 0}, {"headers.request", route.GetHeaders().GetRequest() != nil},
	} {
		if f.set {
			paths = append(paths, f.path)
		}
	}
	return paths
}

func validateWeights(ps *Problems, path Path, routes []*networking.HTTPRouteDestination) {
	var sum int64
	for i, dest := range routes {
		validateDestination(ps, path.At(i, "destination"), dest.GetDestination())
		sum += validateWeight(ps, path.At(i, "weight"), dest.GetWeight())
		validateHeaders(ps, path.At(i, "headers"), dest.GetHeaders())
	}
	validateWeightSum(ps, path, len(routes), sum)
}

func validateWeight(ps *Problems, path Path, weight int32) int64 {
	if weight < 0 {
		ps.invalid(path, fmt.Sprintf("want a weight of 0 or more, got %d", weight))
	}
	return int64(weight)
}

func validateWeightSum(ps *Problems, path Path, destinations int, sum int64) {
	if destinations > 1 && sum == 0 {
		ps.invalid(path, "the weights of several destinations are all zero, want at least one above it")
	}
	if sum > math.MaxUint32 {
		ps.invalid(path, fmt.Sprintf("the weights add up to %d, want at most %d", sum, uint32(math.MaxUint32)))
	}
}

func validateDelegate(ps *Problems, path Path, d *networking.Delegate) {
	if !isName(d.Name) {
		ps.invalid(path.At("name"), fmt.Sprintf("want the name of a VirtualService without hosts, got %q", d.Name))
	}
	if d.Namespace != "" && !dnsLabel.MatchString(d.Namespace) {
		ps.invalid(path.At("namespace"), fmt.Sprintf("want a namespace, got %q", d.Namespace))
	}
}

func validateRedirect(ps *Problems, path Path, r *networking.HTTPRedirect) {
	if r.Uri == "" && r.Authority == "" && r.Scheme == "" && r.PrefixRewrite == "" && r.RedirectPort == nil {
		ps.required(path, "want at least one of uri, prefixRewrite, authority, scheme, port, derivePort: this leads to where the request was")
	}
	if r.Uri != "" && r.PrefixRewrite != "" {
		ps.invalid(path, "want only one of uri and prefixRewrite")
	}
	checkPathText(ps, path.At("uri"), r.Uri)
	checkPathText(ps, path.At("prefixRewrite"), r.PrefixRewrite)
	checkAuthority(ps, path.At("authority"), r.Authority)
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		ps.invalid(path.At("scheme"), fmt.Sprintf("want http or https, got %q", r.Scheme))
	}
	if p, ok := r.RedirectPort.(*networking.HTTPRedirect_Port); ok {
		if msg := checkPort(p.Port); msg != "" {
			ps.invalid(path.At("port"), msg)
		}
	}
	if !slices.Contains([]uint32{0, 301, 302, 303, 307, 308}, r.RedirectCode) {
		ps.invalid(path.At("redirectCode"), fmt.Sprintf("want 301, 302, 303, 307 or 308, got %d", r.RedirectCode))
	}
}

func validateDirectResponse(ps *Problems, path Path, r *networking.HTTPDirectResponse) {
	if r.Status < 200 || r.Status > 599 {
		ps.invalid(path.At("status"), fmt.Sprintf("want an HTTP status between 200 and 599, got %d", r.Status))
	}
	if r.Body == nil {
		return
	}
	name, size := "string", len(r.Body.GetString_())
	if r.Body.GetBytes() != nil {
		name, size = "bytes", len(r.Body.GetBytes())
	}
	switch {
	case size > maxDirectBody:
		ps.invalid(path.At("body", name), fmt.Sprintf("want at most %d bytes, got %d", maxDirectBody, size))
	case size > 0 && (r.Status == 204 || r.Status == 304):
		ps.invalid(path.At("body"), fmt.Sprintf("want none with status %d, which has no body (RFC 9110 section 6.4.1)", r.Status))
	}
}

func validateRewrite(ps *Problems, path Path, r *networking.HTTPRewrite) {
	if r == nil {
		return
	}
	if r.Uri == "" && r.Authority == "" && r.UriRegexRewrite == nil {
		ps.required(path, "want at least one of uri, uriRegexRewrite, authority")
	}
	checkPathText(ps, path.At("uri"), r.Uri)
	checkAuthority(ps, path.At("authority"), r.Authority)
	regex := r.UriRegexRewrite
	if regex == nil {
		return
	}
	path = path.At("uriRegexRewrite")
	if r.Uri != "" {
		ps.invalid(path, "want only one of uri and uriRegexRewrite")
	}
	if msg := checkRegex(regex.Match); msg != "" {
		ps.regexp(path.At("match"), msg)
	} else {
		checkSubstitution(ps, path.At("rewrite"), regex.Rewrite, regexp.MustCompile(regex.Match).NumSubexp())
	}
	if regex.Rewrite == "" {
		ps.required(path.At("rewrite"), "want what takes the place of the match")
	}
	checkPathText(ps, path.At("rewrite"), regex.Rewrite)
}

// checkSubstitution checks RE2's own syntax: \0 is the whole match, \1 to \9 its groups, \\ a backslash.
func checkSubstitution(ps *Problems, path Path, s string, groups int) {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		i++
		switch {
		case i < len(s) && s[i] == '\\':
		case i == len(s) || s[i] < '0' || s[i] > '9':
			ps.invalid(path, `want \0 to \9 or \\ after each backslash`)
			return
		case int(s[i]-'0') > groups:
			ps.invalid(path, fmt.Sprintf("want no \\%c: match has %d groups", s[i], groups))
			return
		}
	}
}

// checkPathText checks what becomes part of a request's path or of a Location.
func checkPathText(ps *Problems, path Path, text string) {
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }) {
		ps.invalid(path, fmt.Sprintf("want a path of visible ASCII without #, got %q", text))
	}
}

func checkAuthority(ps *Problems, path Path, authority string) {
	if authority == "" {
		return
	}
	u, err := url.Parse("//" + authority)
	if err != nil || u.Host != authority || u.Hostname() == "" || u.User != nil || strings.ContainsAny(authority, " %\\\"<>^`{|}") {
		ps.invalid(path, fmt.Sprintf("want a host with an optional port, got %q", authority))
		return
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 32); err != nil || checkPort(uint32(n)) != "" {
			ps.invalid(path, "want a port between 1 and 65535, got "+p)
		}
	}
}

// validateDuration checks d, where there is one, against a smallest value; 0 itself is allowed where that is 0.
func validateDuration(ps *Problems, path Path, d *durationpb.Duration, smallest time.Duration) {
	if d == nil {
		return
	}
	switch v := d.AsDuration(); {
	case v < 0 || v < smallest:
		ps.invalid(path, fmt.Sprintf("want a duration of at least %s, got %s", smallest, v))
	case v%time.Millisecond != 0:
		ps.invalid(path, fmt.Sprintf("want a duration of whole milliseconds, got %s", v))
	}
}

// retryConditions are those that retryOn may name, besides HTTP statuses
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#x-envoy-retry-on).
var retryConditions = []string{ //nolint:gochecknoglobals // a constant
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
	"envoy-ratelimited", "retriable-status-codes", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// unmetConditions are valid and never met: Istio has no field for the headers that the one asks for, and the other is about HTTP/3.
var unmetConditions = []string{"retriable-headers", "http3-post-connect-failure"} //nolint:gochecknoglobals // a constant

// UnmetConditions are the conditions of r that no request meets, in Istio neither.
func UnmetConditions(r *networking.HTTPRetry) (conditions []string) {
	for _, c := range strings.Split(r.GetRetryOn(), ",") {
		if c = strings.TrimSpace(c); slices.Contains(unmetConditions, c) {
			conditions = append(conditions, c)
		}
	}
	return conditions
}

func validateRetries(ps *Problems, path Path, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	if r.Attempts < 0 {
		ps.invalid(path.At("attempts"), fmt.Sprintf("want 0 or more, got %d", r.Attempts))
	}
	if r.Attempts == 0 && (r.PerTryTimeout != nil || r.RetryOn != "" || r.RetryRemoteLocalities != nil || r.Backoff != nil) {
		ps.required(path.At("attempts"), "want 1 or more: 0 turns retries off, and with them the fields beside it")
	}
	validateDuration(ps, path.At("perTryTimeout"), r.PerTryTimeout, time.Millisecond)
	validateDuration(ps, path.At("backoff"), r.Backoff, time.Millisecond)
	if r.RetryOn == "" {
		return
	}
	for _, condition := range strings.Split(r.RetryOn, ",") {
		condition = strings.TrimSpace(condition)
		if n, err := strconv.Atoi(condition); err == nil {
			if n < 200 || n > 599 {
				ps.invalid(path.At("retryOn"), fmt.Sprintf("want an HTTP status between 200 and 599, got %d", n))
			}
			continue
		}
		switch {
		case slices.Contains(unmetConditions, condition):
		case !slices.Contains(retryConditions, condition):
			ps.invalid(path.At("retryOn"), fmt.Sprintf("want HTTP statuses and conditions of %s, got %q", strings.Join(retryConditions, ", "), condition))
		}
	}
}

func validateFault(ps *Problems, path Path, f *networking.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.Delay == nil && f.Abort == nil {
		ps.required(path, "want delay, abort or both")
	}
	if d := f.Delay; d != nil {
		path := path.At("delay")
		validateDuration(ps, path.At("fixedDelay"), d.GetFixedDelay(), time.Millisecond)
		validatePercent(ps, path.At("percentage"), d.Percentage)
	}
	if a := f.Abort; a != nil {
		path := path.At("abort")
		switch t := a.ErrorType.(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			if t.HttpStatus < 200 || t.HttpStatus > 599 {
				ps.invalid(path.At("httpStatus"), fmt.Sprintf("want an HTTP status between 200 and 599, got %d", t.HttpStatus))
			}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if _, ok := GRPCStatus(t.GrpcStatus); !ok {
				ps.invalid(path.At("grpcStatus"), fmt.Sprintf("want a status's name, such as UNAVAILABLE, got %q", t.GrpcStatus))
			}
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			ps.unsupported(path.At("http2Error"), "")
		}
		validatePercent(ps, path.At("percentage"), a.Percentage)
	}
}

// GRPCStatus is the number of a status's name (https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
func GRPCStatus(name string) (int, bool) {
	n := slices.Index([]string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
		"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}, name)
	return n, n >= 0
}

// validatePercent checks a percentage, which has four decimals.
func validatePercent(ps *Problems, path Path, p *networking.Percent) {
	if v := p.GetValue(); v < 0 || v > 100 || v > 0 && v < 0.0001 {
		ps.invalid(path.At("value"), fmt.Sprintf("want a percentage between 0 and 100, in steps of 0.0001, got %v", v))
	}
}

func validateMirrors(ps *Problems, path Path, route *networking.HTTPRoute) {
	if route.Mirror != nil {
		validateDestination(ps, path.At("mirror"), route.Mirror)
		if len(route.Mirrors) > 0 {
			ps.invalid(path, "want only one of mirror and mirrors")
		}
	}
	validatePercent(ps, path.At("mirrorPercentage"), route.MirrorPercentage)
	for i, m := range route.Mirrors {
		validateDestination(ps, path.At("mirrors", i, "destination"), m.GetDestination())
		validatePercent(ps, path.At("mirrors", i, "percentage"), m.GetPercentage())
	}
}

func validateCORS(ps *Problems, path Path, c *networking.CorsPolicy) {
	if c == nil {
		return
	}
	for i, m := range c.AllowOrigins {
		validateStringMatch(ps, path.At("allowOrigins", i), m)
	}
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}
	for i, m := range c.AllowMethods {
		if !slices.Contains(methods, m) {
			ps.invalid(path.At("allowMethods", i), fmt.Sprintf("want one of %s, got %q", strings.Join(methods, ", "), m))
		}
	}
	for _, f := range []struct {
		name  string
		names []string
	}{{"allowHeaders", c.AllowHeaders}, {"exposeHeaders", c.ExposeHeaders}} {
		for i, name := range f.names {
			if !headerName.MatchString(name) {
				ps.invalid(path.At(f.name, i), fmt.Sprintf("want a header's name, got %q", name))
			}
		}
	}
	if d := c.MaxAge; d != nil {
		if v := d.AsDuration(); v <= 0 || v%time.Second != 0 {
			ps.invalid(path.At("maxAge"), fmt.Sprintf("want whole seconds, 1s or more, got %s", v))
		}
	}
}

func validateHeaders(ps *Problems, path Path, h *networking.Headers) {
	validateHeaderOperations(ps, path.At("request"), h.GetRequest(), true)
	validateHeaderOperations(ps, path.At("response"), h.GetResponse(), false)
}

func validateHeaderOperations(ps *Problems, path Path, ops *networking.Headers_HeaderOperations, request bool) {
	for _, f := range []struct {
		name   string
		fields map[string]string
	}{{"set", ops.GetSet()}, {"add", ops.GetAdd()}} {
		for _, name := range slices.Sorted(maps.Keys(f.fields)) {
			at := path.At(f.name, name)
			if request && isAuthorityName(name) {
				checkAuthority(ps, at, f.fields[name])
				if f.fields[name] == "" {
					ps.required(at, "want a host with an optional port")
				}
				continue
			}
			if msg := checkHeaderName(name); msg != "" {
				ps.invalid(at, msg)
			}
			if msg := checkHeaderValue(f.fields[name]); msg != "" {
				ps.invalid(at, msg)
			}
		}
	}
	for i, name := range ops.GetRemove() {
		if msg := checkHeaderName(name); msg != "" {
			ps.invalid(path.At("remove", i), msg)
		}
	}
}

func isAuthorityName(name string) bool {
	return strings.EqualFold(name, "host") || name == ":authority"
}

// hopHeaders frame a message or speak to the next hop alone: the proxy makes them itself (RFC 9110 section 7.6.1).
var hopHeaders = []string{ //nolint:gochecknoglobals // a constant
	"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

func checkHeaderName(name string) string {
	lower := strings.ToLower(name)
	switch {
	case lower == "host" || lower == ":authority":
		return fmt.Sprintf("want a header other than %q, which can be set in a request, and nothing else", name)
	case strings.HasPrefix(name, ":"):
		return fmt.Sprintf("want a header's name, got %q, a pseudo-header: only the authority can be set, in a request", name)
	case !headerName.MatchString(name):
		return fmt.Sprintf("want a header's name, got %q", name)
	case slices.Contains(hopHeaders, lower):
		return fmt.Sprintf("want a header other than %q, which frames a message on its way and is the proxy's own", name)
	}
	return ""
}

// checkHeaderValue refuses Envoy's variables rather than to send them as they are written; %% is a percent sign.
func checkHeaderValue(value string) string {
	switch {
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return "want a value without control characters"
	case strings.TrimSpace(value) != value:
		return "want a value without white space around it"
	case strings.Contains(strings.ReplaceAll(value, "%%", ""), "%"):
		return "variables such as %START_TIME% are not supported yet: want %% for a percent sign"
	}
	return ""
}
