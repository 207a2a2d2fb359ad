package snapshot

import (
	"fmt"
	"time"
)

// Duration is a time.Duration that is written as people do: 1.5s.
type Duration time.Duration

// MarshalText writes 1.5s.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads 1.5s.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration: %w", err)
	}
	*d = Duration(v)
	return nil
}

// RouteRules are what a route does besides choosing a destination. What is nil or zero is not done.
type RouteRules struct {
	Redirect       *Redirect       `json:"redirect,omitempty"`
	DirectResponse *DirectResponse `json:"directResponse,omitempty"`
	Fault          *Fault          `json:"fault,omitempty"`
	CORS           *CORS           `json:"cors,omitempty"`
	Rewrite        *Rewrite        `json:"rewrite,omitempty"`
	Headers        *Headers        `json:"headers,omitempty"`
	Mirrors        []Mirror        `json:"mirrors,omitempty"`
	// Timeout is for the whole of a request from its last byte on, with all retries.
	Timeout Duration `json:"timeout,omitempty"`
	// Retries nil are Istio's defaults: two, where a request has not reached an application.
	Retries *Retries `json:"retries,omitempty"`
}

// Million is a share of requests, in parts of a million: Istio's percentages have four decimals.
type Million = uint32

// Fault is done to requests before they are sent: first the delay, then the abort.
type Fault struct {
	Delay *Delay `json:"delay,omitempty"`
	Abort *Abort `json:"abort,omitempty"`
}

// Delay holds a share of the requests back.
type Delay struct {
	Share Million  `json:"share"`
	Fixed Duration `json:"fixed"`
}

// Abort answers a share of the requests with an error.
type Abort struct {
	Share Million `json:"share"`
	// HTTPStatus is 200 to 599, or 0 where GRPCStatus is set.
	HTTPStatus int `json:"httpStatus,omitempty"`
	// GRPCStatus is 0 to 16.
	GRPCStatus *int `json:"grpcStatus,omitempty"`
}

// Retries say when a request is sent again, and how often.
type Retries struct {
	// Attempts are those after the first; 0 is none.
	Attempts uint32 `json:"attempts"`
	// PerTry is how long one try may take until its response begins; 0 is as long as the route's timeout allows.
	PerTry Duration `json:"perTry,omitempty"`
	// On are Envoy's conditions, as 5xx or connect-failure; empty are the default ones.
	On []string `json:"on,omitempty"`
	// Statuses are HTTP statuses to retry on.
	Statuses []int `json:"statuses,omitempty"`
	// Backoff is the base of the waits between tries; 0 is 25ms.
	Backoff Duration `json:"backoff,omitempty"`
	// SameHost allows to try an endpoint again that has failed, while there are others.
	SameHost bool `json:"sameHost,omitempty"`
}

// Redirect answers with another URL. An empty field is as in the request.
type Redirect struct {
	Status    int    `json:"status"` // 301, 302, 303, 307 or 308
	Scheme    string `json:"scheme,omitempty"`
	Authority string `json:"authority,omitempty"`
	// Port is left out of the URL where it is the scheme's own.
	Port uint16 `json:"port,omitempty"`
	// DerivePort takes the port from elsewhere, where Port is 0; empty is the one of Authority, or of the request's.
	DerivePort DerivePort `json:"derivePort,omitempty"`
	// URI replaces the path as a whole; the query stays unless URI has one.
	URI string `json:"uri,omitempty"`
	// Prefix replaces the part of the path that the route's uri match is a prefix of.
	Prefix string `json:"prefix,omitempty"`
}

// DerivePort says where a redirect's port comes from.
type DerivePort string

// The sources of a port.
const (
	PortOfScheme  DerivePort = "scheme"  // the scheme's own, which is then not written
	PortOfRequest DerivePort = "request" // the one that the client dialled
)

// DirectResponse is an answer of the proxy's own.
type DirectResponse struct {
	Status int    `json:"status"`
	Body   []byte `json:"body,omitempty"`
}

// Rewrite changes a request before it is sent.
type Rewrite struct {
	// URI replaces what a prefix match of the route has matched, or the whole path after another match.
	URI string `json:"uri,omitempty"`
	// Regex, RE2, is searched in the path, and each place replaced with Substitution, which may have \\1.
	Regex        string `json:"regex,omitempty"`
	Substitution string `json:"substitution,omitempty"`
	Authority    string `json:"authority,omitempty"`
}

// Headers are changes of a request's and a response's fields.
type Headers struct {
	Request  HeaderOps `json:"request,omitzero"`
	Response HeaderOps `json:"response,omitzero"`
}

// HeaderOps are done in this order: what is removed, then what is set in the place of all of its name, then what is
// added. Sorted by name.
type HeaderOps struct {
	Remove []string `json:"remove,omitempty"`
	Set    []Field  `json:"set,omitempty"`
	Add    []Field  `json:"add,omitempty"`
}

// Field is a header field.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// CORS answers preflights and marks responses for origins (https://fetch.spec.whatwg.org/#http-cors-protocol).
type CORS struct {
	Origins       []StringMatch `json:"origins,omitempty"` // any of them
	Methods       string        `json:"methods,omitempty"`
	AllowHeaders  string        `json:"allowHeaders,omitempty"`
	ExposeHeaders string        `json:"exposeHeaders,omitempty"`
	MaxAge        string        `json:"maxAge,omitempty"` // seconds
	Credentials   bool          `json:"credentials,omitempty"`
	// IgnoreUnmatched answers preflights of other origins too, without leave, rather than to forward them.
	IgnoreUnmatched bool `json:"ignoreUnmatched,omitempty"`
}

// Mirror sends a copy of a share of the requests elsewhere; its answer counts nothing.
type Mirror struct {
	Service string  `json:"service"`
	Subset  string  `json:"subset,omitempty"`
	Port    uint16  `json:"port,omitempty"` // 0 is the port that the client dialled
	Share   Million `json:"share"`
}
