package proxy

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/tcp"
)

// Times of detection.
const (
	// silence is how long the client of an undeclared port may be silent before its server is asked: a server that speaks
	// first is waited for by its client. Nearly every HTTP client sends its request sooner, and then no connection is
	// made in vain.
	silence = 50 * time.Millisecond
	// meshSilence is for clients that have a proxy: it begins with a ClientHello, however busy its machine is.
	meshSilence = 5 * time.Second
)

// detected is what a client speaks.
type detected struct {
	kind  listen.Kind
	hello *listen.Hello // of TLS
	// session is connected already where the server had to be asked, else nil.
	session *tcp.Session
}

// http reports whether a connection to a port of the declared protocol is served as HTTP. A port that is declared HTTP
// and gets anything but TLS is: the engine tells the client that it is not.
func (d *detected) http(p mesh.Protocol) bool {
	switch d.kind {
	case listen.HTTP1, listen.HTTP2:
		return p == mesh.ProtocolAuto || isHTTP(p)
	case listen.TCP:
		return isHTTP(p)
	default:
		return false
	}
}

// http2 reports whether it is served as HTTP/2. That has a way of its own to refuse what is none.
func (d *detected) http2(p mesh.Protocol) bool {
	return d.http(p) && (d.kind == listen.HTTP2 || d.kind == listen.TCP && p != mesh.ProtocolHTTP)
}

// isHTTP reports whether the declared protocol is HTTP of some version. Which one, the client chooses: it is passed on, or
// translated.
func isHTTP(p mesh.Protocol) bool {
	return p == mesh.ProtocolHTTP || p == mesh.ProtocolHTTP2 || p == mesh.ProtocolGRPC
}

// isOpaque reports whether the declared protocol is none that the proxy understands, so that its bytes are nobody's
// business here, and its server may be the one to speak first.
func isOpaque(p mesh.Protocol) bool {
	switch p {
	case mesh.ProtocolAuto, mesh.ProtocolHTTP, mesh.ProtocolHTTP2, mesh.ProtocolGRPC, mesh.ProtocolHTTPS, mesh.ProtocolTLS:
		return false
	default:
		return true
	}
}

// detect finds out what the client speaks: what was declared for the port comes first, then what its number implies,
// then the first bytes. Once a client has sent anything, its bytes alone decide: however slowly it sends a request, it
// is never taken for something that no rule about HTTP applies to. Also with an error there may be a session.
func (s *Server) detect(ctx context.Context, st *stream) (detected, error) {
	switch {
	case isOpaque(st.protocol) && st.Direction != exchange.Inbound:
		return detected{kind: listen.TCP}, nil
	case isOpaque(st.protocol):
		return s.detectMesh(ctx, st)
	case isHTTP(st.protocol):
		// There is no server to speak first.
		d, err := s.sniff(st, s.cfg.Settings.FirstByteTimeout)
		if err == nil && d.kind == listen.Silent {
			err = os.ErrDeadlineExceeded
		}
		return d, err
	}
	quiet := silence
	if st.fromMesh {
		quiet = meshSilence
	}
	d, err := s.sniff(st, quiet)
	if err != nil || d.kind != listen.Silent {
		return d, err
	}
	session, serverFirst, err := s.race(ctx, st)
	switch {
	case err != nil:
	case serverFirst:
		d.kind = listen.TCP
	default:
		d, err = s.sniff(st, 0)
		if isEnd(err) {
			d.kind, err = listen.TCP, nil // the client sends nothing at all: its end is passed on
		}
	}
	d.session = session
	return d, err
}

// detectMesh tells the mutual TLS of a peer's proxy from what goes to a port that is opaque. Other clients are not waited
// for: their server may speak first. A peer's proxy begins by itself, and must not be sent anything before.
func (s *Server) detectMesh(ctx context.Context, st *stream) (detected, error) {
	if st.fromMesh {
		d, err := s.sniffTLS(st, meshSilence)
		if err != nil || d.kind != listen.Silent {
			return d, err
		}
	}
	session, serverFirst, err := s.race(ctx, st)
	if err != nil || serverFirst {
		return detected{kind: listen.TCP, session: session}, err
	}
	d, err := s.sniffTLS(st, 0)
	if isEnd(err) {
		d.kind, err = listen.TCP, nil
	}
	d.session = session
	return d, err
}

// race connects to the server and waits until either side says something.
func (s *Server) race(ctx context.Context, st *stream) (*tcp.Session, bool, error) {
	session, err := s.tcp.Connect(ctx, st.client, st.Connection, st.target)
	if err != nil {
		return nil, false, &dialError{err}
	}
	limit := time.Duration(0)
	if st.protocol != mesh.ProtocolAuto && !isOpaque(st.protocol) || mesh.ClientSpeaksFirst(st.OriginalDst.Port()) {
		limit = s.cfg.Settings.FirstByteTimeout
	}
	serverFirst, err := session.ServerSpokeFirst(limit)
	return session, serverFirst, err
}

// dialError says that the server of a client that is still undecided can't be reached.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (s *Server) sniff(st *stream, quiet time.Duration) (detected, error) {
	kind, hello, err := listen.Sniff(st.client, s.timeouts(quiet))
	return detected{kind: kind, hello: hello}, err
}

// sniffTLS looks for nothing but TLS. A ClientHello that does not come to its end is passed on as what it is: it is for
// whoever stands behind the port.
func (s *Server) sniffTLS(st *stream, quiet time.Duration) (detected, error) {
	kind, hello, err := listen.SniffTLS(st.client, s.timeouts(quiet))
	if errors.Is(err, listen.ErrSlow) {
		kind, err = listen.TCP, nil
	}
	return detected{kind: kind, hello: hello}, err
}

func (s *Server) timeouts(quiet time.Duration) listen.Timeouts {
	return listen.Timeouts{Silence: quiet, Handshake: s.cfg.Settings.HandshakeTimeout, Header: s.cfg.Settings.HeaderTimeout}
}
