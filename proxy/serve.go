package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/extauth"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/tcp"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// stream is a client's connection on its way to be served.
type stream struct {
	*exchange.Connection
	client *listen.Conn
	target tcp.Target // where it goes as bytes
	// protocol is what the port is declared to speak.
	protocol mesh.Protocol
	// fromMesh says that the client has a proxy, which begins with a ClientHello of its own.
	fromMesh bool
	// headerless says that the port wants a PROXY header, and none has come: what has must be mutual TLS of the mesh.
	headerless bool
}

// rest is what is left to do for a connection once it is clear what it speaks and where it goes; nil is nothing. The
// outermost function of its goroutine does it, so that the stack of deciding does not stay under a connection that
// may be idle for days.
type rest func()

func (s *Server) serveOutbound(ctx context.Context, c *net.TCPConn) rest {
	dst, ok := s.redirected(c, true)
	switch {
	case !ok:
		listen.Reset(c)
		return nil
	case dst.Addr() == selfTestIP:
		answerSelfTest(c)
		return nil
	}
	t := s.table.Load()
	protocol := t.Protocol(dst)
	if dst.Addr().IsUnspecified() {
		// Nobody has said where it was going (docs/standalone.md): its Host must, so there is no server to speak first.
		protocol = mesh.ProtocolHTTP
	}
	return s.serve(ctx, &stream{
		Connection: connection(exchange.Outbound, c, dst),
		client:     listen.NewConn(c),
		target:     target(t.Session(dst, false, "", rand.Uint64())),
		protocol:   protocol,
	})
}

func (s *Server) serveInbound(ctx context.Context, c *net.TCPConn) rest {
	dst, ok := s.redirected(c, false)
	if !ok || !s.mayEnter(c, dst) {
		listen.Reset(c)
		return nil
	}
	t := s.table.Load()
	st := &stream{
		Connection: connection(exchange.Inbound, c, dst),
		client:     listen.NewConn(c),
		target:     inboundTarget(t, dst),
		protocol:   t.Protocol(dst),
	}
	mode, _ := t.Mode(dst.Port())
	if w := t.Workload(st.Remote.Addr()); w != nil && w.Identity != "" && s.cfg.Identity != nil && mode != snapshot.Disable {
		st.fromMesh = true
	}
	st.target.Ends.Source = t.Peer(st.Remote.Addr(), "")
	if err := s.named(st); err != nil {
		s.undecided(st, err)
		return nil
	}
	if !t.TakesPlainText(st.Remote.Addr(), dst.Port()) {
		return s.serveProven(ctx, st)
	}
	return s.serve(ctx, st)
}

// target is a table's decision as something to dial.
func target(to table.Session) tcp.Target {
	out := tcp.Target{Target: to.Target, Cluster: to.Cluster, Ends: to.Ends, Flag: to.Flag}
	if to.Endpoint != nil {
		out.Load = to.Endpoint.Sessions()
	}
	return out
}

// mayEnter reports whether an inbound connection goes to our own application: to one of our addresses, and not to
// the proxy's own ports. The sandbox's rules see to it as well; this holds if they fail.
func (s *Server) mayEnter(c *net.TCPConn, dst netip.AddrPort) bool {
	own := s.cfg.Capture.Own
	if own == nil {
		return true
	}
	switch dst.Port() {
	case mesh.PortAdmin, mesh.PortOutbound, mesh.PortInbound:
	default:
		if own(dst.Addr()) {
			return true
		}
	}
	s.stats.foreign.Add(1)
	s.log.Debug("refused an inbound connection to what is not the application's", "remote", c.RemoteAddr(), "original_destination", dst)
	return false
}

func connection(d exchange.Direction, c *net.TCPConn, dst netip.AddrPort) *exchange.Connection {
	return &exchange.Connection{
		Direction: d, OriginalDst: dst, Start: time.Now(),
		Remote: listen.AddrPort(c.RemoteAddr()), Local: listen.AddrPort(c.LocalAddr()),
	}
}

// inboundTarget is our own application: at the very address that the client dialled, so that what listens on loopback
// alone stays unreachable.
func inboundTarget(t *table.Table, dst netip.AddrPort) tcp.Target {
	target := tcp.Target{Target: upstream.Target{Addr: dst}, Cluster: table.InboundCluster(dst.Port())}
	if w := t.Self(); w != nil {
		target.Ends.Destination = w.Workload
	}
	if svc := t.Inbound(nil); svc != nil {
		target.Ends.Service = svc.Service
	}
	return target
}

// serve finds out what the client speaks and how to serve that.
func (s *Server) serve(ctx context.Context, st *stream) rest {
	found, err := s.detect(ctx, st)
	if err != nil {
		abandon(found.session)
		s.undecided(st, err)
		return nil
	}
	s.connections.decided(st.client)
	if found.hello != nil {
		st.ServerName = found.hello.ServerName
	}
	isMesh := s.isMesh(st, found.hello)
	if st.headerless && !isMesh {
		abandon(found.session)
		s.undecided(st, errHeaderless)
		return nil
	}
	if st.Direction == exchange.Inbound && !isMesh && !s.stillPlain(st) {
		abandon(found.session)
		return nil
	}
	switch {
	case isMesh:
		abandon(found.session)
		return s.terminate(ctx, st)
	case found.http2(st.protocol):
		abandon(found.session)
		return s.serveHTTP2(ctx, st.client, st.Connection)
	case found.http(st.protocol):
		abandon(found.session)
		return s.serveHTTP(ctx, st.client, st.Connection)
	case found.hello != nil && st.Direction == exchange.Outbound && s.table.Load().RoutesTLS():
		// Only now it is known where it goes.
		abandon(found.session)
		st.target = target(s.table.Load().Session(st.OriginalDst, true, st.ServerName, rand.Uint64()))
		return s.pass(ctx, st, nil)
	default:
		return s.pass(ctx, st, found.session)
	}
}

// isMesh reports whether a ClientHello is for this proxy rather than for the application.
func (s *Server) isMesh(st *stream, hello *listen.Hello) bool {
	return st.Direction == exchange.Inbound && s.cfg.Identity != nil && hello.Offers(mesh.ALPNHTTP1, mesh.ALPNHTTP2, mesh.ALPNTCP)
}

// terminate ends the mutual TLS of a peer's proxy; what is inside is to be served.
func (s *Server) terminate(ctx context.Context, st *stream) rest {
	conn := tls.Server(st.client, s.meshTLS)
	shake, cancel := context.WithTimeout(ctx, s.cfg.Settings.HandshakeTimeout)
	err := conn.HandshakeContext(shake)
	cancel()
	var peer string
	state := conn.ConnectionState()
	if err == nil {
		id, e := identity.PeerID(&state)
		peer, err = id.String(), e
	}
	if err != nil {
		reason := s.stats.handshakeFailed(err)
		s.log.Info("a peer's mutual tls handshake failed", "remote", st.Remote, "reason", reason, "error", err)
		_ = conn.Close() // sends what alert there is
		return nil
	}
	st.Peer = peer
	s.connections.provenUntil(st.client, state.PeerCertificates[0].NotAfter)
	switch state.NegotiatedProtocol {
	case mesh.ALPNHTTP1:
		return s.serveHTTP(ctx, conn, st.Connection)
	case mesh.ALPNHTTP2:
		return s.serveHTTP2(ctx, conn, st.Connection)
	}
	t := s.table.Load()
	st.target.Ends.Source = t.Peer(st.Remote.Addr(), peer)
	st.client = listen.NewConn(conn)
	return s.pass(ctx, st, nil)
}

func (s *Server) serveHTTP(ctx context.Context, c net.Conn, conn *exchange.Connection) rest {
	return func() { s.ended(conn, s.engine.ServeHTTP1(ctx, c, conn)) }
}

func (s *Server) serveHTTP2(ctx context.Context, c net.Conn, conn *exchange.Connection) rest {
	return func() { s.ended(conn, s.engine.ServeHTTP2(ctx, c, conn)) }
}

//go:noinline // or its variables lie on the stack of every idle connection
func (s *Server) ended(conn *exchange.Connection, err error) {
	if err != nil {
		s.log.Debug("http connection ended", "remote", conn.Remote, "original_destination", conn.OriginalDst, "error", err)
	}
}

// pass serves the connection as bytes, with the server that is connected already, if one is.
func (s *Server) pass(ctx context.Context, st *stream, session *tcp.Session) rest {
	if st.Direction != exchange.Outbound && st.target.Flag == exchange.FlagNone && s.forbids(ctx, st) {
		abandon(session) // nothing of what the client sent has reached it
		session = nil
	}
	if session == nil {
		var err error
		if session, err = s.tcp.Connect(ctx, st.client, st.Connection, st.target); err != nil {
			s.refuse(st, err)
			return nil
		}
	}
	return session.Run
}

// forbids asks the policies, in the order in which requests meet them (proxy/table/checks.go), and notes what they say.
func (s *Server) forbids(ctx context.Context, st *stream) bool {
	t := s.table.Load()
	if s.unauthorized(ctx, t, st) {
		return true
	}
	if st.target.Refused = t.Access().CheckConnection(st.Connection); st.target.Refused != "" {
		return true
	}
	reason := t.Rules().CheckConnection(st.Connection, st.target.Ends)
	if reason != "" {
		s.log.Debug("refused a connection", "remote", st.Remote, "original_destination", st.OriginalDst, "reason", reason)
		st.target.Flag = exchange.FlagUnauthorized
	}
	return reason != ""
}

// unauthorized asks the extension providers that have to allow the connection. Those of HTTP know of requests alone: as in
// Istio, they are not asked.
func (s *Server) unauthorized(ctx context.Context, t *table.Table, st *stream) bool {
	for _, asked := range t.Access().AskConnection(st.Connection) {
		p := t.Authorizer(asked.Provider)
		switch {
		case p == nil:
			st.target.Refused = extauth.Unknown(asked.Rule.Name).Details
		case p.GRPC:
			self := ""
			if w := t.Self(); w != nil {
				self = w.Identity
			}
			q := extauth.New(p, asked.Rule.Name, self, st.Connection, nil, extauth.Body{})
			q.Ask(ctx, s.transport)
			var err error
			if st.target.Refused, err = q.Refused(); err != nil {
				s.log.Debug("an external authorizer can't be asked", "rule", asked.Rule.Name, "fail_open", p.FailOpen, "error", err)
			}
		}
		if st.target.Refused != "" {
			return true
		}
	}
	return false
}

// refuse answers a failed dial: its connect() has succeeded long ago, so only RST can tell the client.
func (s *Server) refuse(st *stream, err error) {
	if st.target.Refused == "" {
		s.stats.connectFailed.Add(1)
	}
	s.log.Debug("refused a connection", "remote", st.Remote, "destination", st.target.Addr, "error", err)
	listen.Reset(st.client)
}

// undecided ends a connection whose client left or dallied before it was clear what it speaks.
func (s *Server) undecided(st *stream, err error) {
	var (
		dial   *dialError
		header *headerError
	)
	switch {
	case errors.As(err, &header):
		s.stats.badHeaders.Add(1)
		s.log.Info("refused a connection", "remote", st.Remote, "original_destination", st.OriginalDst, "error", err)
		listen.Reset(st.client)
	case errors.As(err, &dial):
		s.refuse(st, dial.error)
	case errors.Is(err, listen.ErrSlow):
		s.stats.slowClients.Add(1)
		s.log.Info("refused a connection", "remote", st.Remote, "original_destination", st.OriginalDst, "error", err)
		listen.Reset(st.client)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.stats.slowClients.Add(1)
		_ = st.client.Close() // it has sent nothing
	case isEnd(err):
		_ = st.client.Close() // it has sent nothing and is gone
	default:
		listen.Reset(st.client)
	}
}

func abandon(session *tcp.Session) {
	if session != nil {
		session.Abandon()
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) }
