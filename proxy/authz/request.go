package authz

import (
	"net/netip"
	"strings"
	"unsafe"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/normal"
)

// Request is what rules are asked about: an HTTP request, or a connection of bytes. It can be used again, with Reset, and
// then needs no memory.
type Request struct {
	// Peer is the SPIFFE ID of the client's certificate, which mutual TLS has verified; empty where there is none. No header
	// counts for it.
	Peer string
	// Source is the address of the peer, Remote that of the client behind the gateways of the mesh, Destination and Port what
	// the client dialled.
	Source, Remote, Destination netip.Addr
	Port                        uint16
	ServerName                  string

	// HTTP says that there is a request, which the rest is about.
	HTTP bool
	// Method, Path and Authority are the request's: Path in its normal form, with the query.
	Method, Path, Authority []byte
	Header                  http1.Header
	// Auth is of the request's token; nil where it has none.
	Auth *exchange.Auth

	principal, trustDomain, namespace, serviceAccount string

	// readings are those of the path, the first the one that goes on; lower are they in small letters.
	readings, lower [maxReadings]string
	count           int
	host            string
	hostPort        uint16

	room       [2*maxReadings + 1][]byte // of the texts above
	text       []byte                    // of the one in hand
	values     []string
	candidates []*rule
}

// maxReadings of a path: as it goes on, and folded in the two orders.
const maxReadings = 3

// Reset forgets all but the room.
func (r *Request) Reset() {
	*r = Request{room: r.room, text: r.text[:0], values: r.values[:0], candidates: r.candidates[:0]}
}

// view is b as a string that lives as long as b is not written.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// prepare makes what several conditions look at.
func (r *Request) prepare() {
	r.principal = strings.TrimPrefix(r.Peer, "spiffe://")
	var rest string
	r.trustDomain, rest, _ = strings.Cut(r.principal, "/")
	// ns/<namespace>/sa/<service account>
	if rest, ok := strings.CutPrefix(rest, "ns/"); ok {
		r.namespace, rest, _ = strings.Cut(rest, "/")
		r.serviceAccount, _ = strings.CutPrefix(rest, "sa/")
	}
	if !r.HTTP {
		return
	}
	path := r.Path
	for i, c := range path {
		if c == '?' {
			path = path[:i]
			break
		}
	}
	r.count = 0
	if !normal.Ambiguous(path) {
		r.read(path)
	} else {
		r.room[0] = normal.Literal(r.room[0][:0], path)
		r.read(r.room[0])
		r.room[1] = normal.Fold(r.room[1][:0], path, true)
		r.read(r.room[1])
		r.room[2] = normal.Fold(r.room[2][:0], path, false)
		r.read(r.room[2])
	}
	name, port := normal.Host(r.room[2*maxReadings][:0], r.Authority)
	r.room[2*maxReadings] = name
	r.host, r.hostPort = view(name), port
	if port == 0 {
		r.hostPort = r.Port
	}
}

// read adds a reading of the path.
func (r *Request) read(path []byte) {
	i := r.count
	low := &r.room[maxReadings+i]
	*low = normal.Lower((*low)[:0], path)
	r.readings[i], r.lower[i] = view(path), view(*low)
	r.count++
}
