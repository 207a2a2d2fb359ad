// Package attribute gives the expressions of Mixer what a proxy knows of an exchange or of a session, by the names of
// Istio 1.0 (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/attribute-vocabulary/). Nothing is
// computed before it is asked for, and asking allocates nothing, but for the few names that are put together.
package attribute

import (
	"bytes"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/expression"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// Bag is the attributes of one exchange or session. Its strings point into the connection's buffers: they are valid for as
// long as the exchange is, and whoever keeps one copies it. A Bag may be used again after Exchange or Session.
type Bag struct {
	conn     *exchange.Connection
	ends     exchange.Ends
	upstream *exchange.Upstream
	record   *exchange.Exchange // nil for a session
	session  *exchange.Session  // nil for an exchange
	done     bool               // the response, or the end, is there
	start    time.Time

	request, response headers
	query             query
	claims            claims
	path              []byte
	scheme            string
}

// Exchange makes b the attributes of an exchange. x may be nil where the head of the request is not at hand any more; done
// says that its response is known.
func (b *Bag) Exchange(r *exchange.Exchange, x *filter.Exchange, ends exchange.Ends, done bool) {
	*b = Bag{conn: r.Conn, ends: ends, upstream: &r.Upstream, record: r, done: done, start: r.Start, path: r.Path}
	if x != nil {
		b.request.fields = x.Request.Header
		b.response.fields = x.Response.Header
		b.scheme = x.Request.Scheme
	}
	b.claims.auth = r.Auth
}

// ForgetResponse makes the response's header unknown.
func (b *Bag) ForgetResponse() { b.response.fields = nil }

// Session makes b the attributes of a connection that is passed as bytes; done says that it has ended.
func (b *Bag) Session(s *exchange.Session, done bool) {
	*b = Bag{conn: s.Conn, ends: s.Ends, upstream: &s.Upstream, session: s, done: done, start: s.Start}
}

// outbound reports whether the proxy stands at the client's side. A gateway does.
func (b *Bag) outbound() bool { return b.conn.Direction != exchange.Inbound }

// Attribute is the value of the attribute, false where it is not known.
func (b *Bag) Attribute(name string) (expression.Value, bool, error) {
	var v expression.Value
	var ok bool
	group, rest, _ := strings.Cut(name, ".")
	switch group {
	case "source":
		v, ok = b.source(rest)
	case "destination":
		v, ok = b.destination(rest)
	case "origin":
		if rest == "ip" {
			v, ok = address(b.origin())
		}
	case "request":
		v, ok = b.requested(rest)
	case "response":
		v, ok = b.responded(rest)
	case "connection":
		v, ok = b.connection(rest)
	case "context":
		v, ok = b.context(rest)
	case "check":
		v, ok = b.check(rest)
	}
	return v, ok, nil
}

func (b *Bag) source(name string) (expression.Value, bool) {
	switch name {
	case "ip":
		return address(b.conn.Remote.Addr())
	case "principal", "user":
		if !b.outbound() {
			return principal(b.conn.Peer)
		}
		if b.upstream.TLS && b.ends.Source != nil {
			return principal(b.ends.Source.Identity)
		}
		return expression.Value{}, false
	}
	return workload(b.ends.Source, name)
}

func (b *Bag) destination(name string) (expression.Value, bool) {
	switch name {
	case "ip":
		return address(b.target().Addr())
	case "port":
		return number(int64(b.target().Port())), b.target().IsValid()
	case "principal", "user":
		if b.ends.Destination != nil && (b.outbound() && b.upstream.TLS || !b.outbound() && b.conn.Peer != "") {
			return principal(b.ends.Destination.Identity)
		}
		return expression.Value{}, false
	case "service", "service.host", "service.name", "service.namespace", "service.uid":
		return b.service(name)
	}
	return workload(b.ends.Destination, name)
}

// target is the address that the request goes to: the one that was chosen, else the one that the client dialled.
func (b *Bag) target() netip.AddrPort {
	if b.outbound() && b.upstream.Remote.IsValid() {
		return b.upstream.Remote
	}
	return b.conn.OriginalDst
}

func (b *Bag) service(name string) (expression.Value, bool) {
	var host, short, namespace string
	switch s, d := b.ends.Service, b.ends.Destination; {
	case s != nil:
		host, short, namespace = s.Host, s.Name, s.Namespace
	case d != nil && d.Service != "":
		short, namespace = d.Service, d.Namespace
	default:
		return expression.Value{}, false
	}
	switch name {
	case "service.name":
		return text(short), true
	case "service.namespace":
		return text(namespace), true
	case "service.uid":
		return text("istio://" + namespace + "/services/" + short), true
	}
	if host == "" {
		host = mesh.FQDN(short, namespace)
	}
	return text(host), true
}

func workload(w *snapshot.Workload, name string) (expression.Value, bool) {
	if w == nil || w.Name == "" {
		return expression.Value{}, false
	}
	switch name {
	case "name", "workload.name":
		return text(w.Name), true
	case "namespace", "workload.namespace":
		return text(w.Namespace), true
	case "labels":
		return expression.Value{Type: snapshot.StringMap, Map: labels(w.Labels)}, true
	case "uid":
		return text("kubernetes://" + w.Name + "." + w.Namespace), true
	case "workload.uid":
		return text("istio://" + w.Namespace + "/workloads/" + w.Name), true
	case "serviceAccount":
		return text(w.ServiceAccount), true
	case "container.name":
		return text(w.Service), w.Service != ""
	case "service":
		return text(mesh.FQDN(w.Service, w.Namespace)), w.Service != ""
	}
	return expression.Value{}, false
}

// origin is the client's address: of a request, the one that the mesh's gateway has found out.
func (b *Bag) origin() netip.Addr {
	if b.record != nil {
		return b.record.Client()
	}
	return b.conn.Downstream().Addr()
}

func (b *Bag) requested(name string) (expression.Value, bool) {
	r := b.record
	if r == nil {
		if name == "time" {
			return moment(b.start), true
		}
		return expression.Value{}, false
	}
	switch name {
	case "headers":
		return expression.Value{Type: snapshot.StringMap, Map: &b.request}, true
	case "id":
		return field(r.RequestID)
	case "path":
		return field(b.path)
	case "url_path":
		path, _, _ := bytes.Cut(b.path, []byte{'?'})
		return field(path)
	case "query_params":
		_, b.query.raw, _ = bytes.Cut(b.path, []byte{'?'})
		return expression.Value{Type: snapshot.StringMap, Map: &b.query}, true
	case "host":
		return field(r.Authority)
	case "method":
		return field(r.Method)
	case "scheme":
		return text(b.scheme), b.scheme != ""
	case "referer":
		return b.request.value("referer")
	case "useragent":
		return field(r.UserAgent)
	case "time":
		return moment(r.Start), true
	case "size":
		if b.done {
			return number(r.BytesReceived), true
		}
		if n, ok := b.request.Get("content-length"); ok {
			size, err := strconv.ParseInt(n, 10, 64)
			return number(size), err == nil
		}
	case "total_size":
		return number(r.BytesReceived), b.done
	case "api_key":
		return b.request.value("x-api-key")
	case "auth.principal", "auth.audiences", "auth.presenter", "auth.raw_claims", "auth.claims":
		return b.authenticated(name)
	}
	return expression.Value{}, false
}

func (b *Bag) authenticated(name string) (expression.Value, bool) {
	a := b.record.Auth
	if a == nil {
		return expression.Value{}, false
	}
	switch name {
	case "auth.principal":
		return text(a.Principal), a.Principal != ""
	case "auth.audiences":
		switch len(a.Audiences) {
		case 0:
			return expression.Value{}, false
		case 1:
			return text(a.Audiences[0]), true
		}
		return text(strings.Join(a.Audiences, ",")), true
	case "auth.presenter":
		return text(a.Presenter), a.Presenter != ""
	case "auth.raw_claims":
		return text(a.Raw), a.Raw != ""
	}
	return expression.Value{Type: snapshot.StringMap, Map: &b.claims}, true
}

func (b *Bag) responded(name string) (expression.Value, bool) {
	r := b.record
	if r == nil || !b.done {
		return expression.Value{}, false
	}
	switch name {
	case "code":
		return number(int64(r.Status)), true
	case "size", "total_size":
		return number(r.BytesSent), true
	case "duration":
		return duration(r.Duration), true
	case "time":
		return moment(r.Start.Add(r.Duration)), true
	case "headers":
		return expression.Value{Type: snapshot.StringMap, Map: &b.response}, true
	case "grpc_status":
		if r.GRPCStatus < 0 || r.GRPCStatus >= len(grpcStatus) {
			return expression.Value{}, false
		}
		return text(grpcStatus[r.GRPCStatus]), true
	case "grpc_message":
		return b.response.value("grpc-message")
	}
	return expression.Value{}, false
}

var grpcStatus = [...]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"}

func (b *Bag) connection(name string) (expression.Value, bool) {
	switch name {
	case "mtls":
		v := expression.Value{Type: snapshot.Bool}
		if b.conn.Peer != "" || b.outbound() && b.upstream.TLS {
			v.Int = 1
		}
		return v, true
	case "requested_server_name":
		return text(b.conn.ServerName), b.conn.ServerName != ""
	}
	s := b.session
	if s == nil {
		return expression.Value{}, false
	}
	switch name {
	case "event":
		if b.done {
			return text("close"), true
		}
		return text("open"), true
	case "received.bytes", "received.bytes_total":
		return number(s.BytesReceived), true
	case "sent.bytes", "sent.bytes_total":
		return number(s.BytesSent), true
	case "duration":
		return duration(s.Duration), b.done
	}
	return expression.Value{}, false
}

func (b *Bag) context(name string) (expression.Value, bool) {
	switch name {
	case "protocol":
		switch {
		case b.record == nil:
			return text("tcp"), true
		case b.record.GRPC:
			return text("grpc"), true
		}
		return text("http"), true
	case "time", "timestamp":
		return moment(b.start), true
	case "reporter.kind":
		if b.outbound() {
			return text("outbound"), true
		}
		return text("inbound"), true
	case "reporter.uid":
		if b.outbound() {
			return workload(b.ends.Source, "uid")
		}
		return workload(b.ends.Destination, "uid")
	case "proxy_error_code":
		var flag exchange.Flag
		switch {
		case !b.done:
			return expression.Value{}, false
		case b.record != nil:
			flag = b.record.Flag
		default:
			flag = b.session.Flag
		}
		if flag == exchange.FlagNone {
			return text("-"), true
		}
		return text(string(flag)), true
	}
	return expression.Value{}, false
}

// check is what a check of Mixer's has said of the request.
func (b *Bag) check(name string) (expression.Value, bool) {
	if b.record == nil {
		return expression.Value{}, false
	}
	switch name {
	case "error_code":
		return number(int64(b.record.CheckCode)), true
	case "error_message":
		return text(b.record.CheckMessage), b.record.CheckMessage != ""
	}
	return expression.Value{}, false
}

func text(s string) expression.Value { return expression.Value{Type: snapshot.String, Str: s} }

// field is one that is not there where it is empty.
func field(b []byte) (expression.Value, bool) { return text(str(b)), len(b) > 0 }

// str is b as a string that is not copied: it must not outlive the exchange.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func number(n int64) expression.Value { return expression.Value{Type: snapshot.Int64, Int: n} }

func duration(d time.Duration) expression.Value {
	return expression.Value{Type: snapshot.DurationType, Int: int64(d)}
}

func moment(t time.Time) expression.Value {
	return expression.Value{Type: snapshot.Timestamp, Time: t.UTC()}
}

func address(a netip.Addr) (expression.Value, bool) {
	return expression.Value{Type: snapshot.IPAddress, IP: a.Unmap().WithZone("")}, a.IsValid()
}

// principal is an identity as Mixer had it: without the scheme.
func principal(id string) (expression.Value, bool) {
	return text(strings.TrimPrefix(id, "spiffe://")), id != ""
}

type labels map[string]string

func (l labels) Get(key string) (string, bool) { v, ok := l[key]; return v, ok }

// headers are the fields of a head. Names are compared in any case; of several fields the first counts.
type headers struct{ fields http1.Header }

func (h *headers) Get(key string) (string, bool) {
	for i := range h.fields {
		if n := h.fields[i].Name; len(n) == len(key) && strings.EqualFold(str(n), key) {
			return str(h.fields[i].Value), true
		}
	}
	return "", false
}

func (h *headers) value(key string) (expression.Value, bool) {
	v, ok := h.Get(key)
	return text(v), ok
}

// query are the parameters of a query, of which the first of a name counts.
type query struct{ raw []byte }

func (q *query) Get(key string) (string, bool) {
	for rest := q.raw; len(rest) > 0; {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, []byte{'&'})
		name, value, _ := bytes.Cut(pair, []byte{'='})
		if unescape(name) == key {
			return unescape(value), true
		}
	}
	return "", false
}

// claims are those of a token: the first of each one's texts.
type claims struct{ auth *exchange.Auth }

func (c *claims) Get(key string) (string, bool) {
	if c.auth == nil || c.auth.Claims == nil {
		return "", false
	}
	claim := c.auth.Claims.Fields[key]
	if claim == nil || len(claim.Values) == 0 {
		return "", false
	}
	return claim.Values[0], true
}

// unescape undoes percent-encoding and plus signs; what is not encoded is not copied, and what is encoded wrongly stays.
func unescape(b []byte) string {
	if !bytes.ContainsAny(b, "%+") {
		return str(b)
	}
	s, err := url.QueryUnescape(string(b))
	if err != nil {
		return string(b)
	}
	return s
}
