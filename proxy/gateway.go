package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/tcp"
	"github.com/composure-mesh/composure/proxy/tlsconf"
)

// gateway takes connections from outside the mesh: on the ports it was given, and on those that its snapshot names.
type gateway struct {
	server *Server

	mu        sync.Mutex
	listeners map[uint16]*net.TCPListener
	refused   map[uint16]bool // ports of the snapshot that could not be opened, told once
	running   bool
	loops     sync.WaitGroup
	failed    chan error
	bare      sync.Once // told that there is no Gateway yet
}

func (g *gateway) bind(ports []uint16) error {
	g.failed = make(chan error, 1)
	for _, port := range ports {
		if err := g.open(port); err != nil {
			return err
		}
	}
	if snap := g.server.snapshot.Load(); snap != nil {
		g.apply(snap) // the one of the last run
	}
	return nil
}

// open listens on a port. Before run nobody else is about; after that g.mu is held.
func (g *gateway) open(port uint16) error {
	ln, err := listen.Bind(context.Background(), net.JoinHostPort(g.server.cfg.GatewayHost, strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("gateway port %d: %w", port, err)
	}
	g.listeners[port] = ln
	return nil
}

// apply opens the ports of a snapshot that are not open yet. One that can't be opened keeps the others from nothing.
func (g *gateway) apply(snap *snapshot.Snapshot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range snap.Gateways {
		port := snap.Gateways[i].Port
		if g.listeners[port] != nil || g.refused[port] {
			continue
		}
		if err := g.open(port); err != nil {
			g.refused[port] = true
			g.server.log.Warn("a port of a Gateway could not be opened", "error", err)
			continue
		}
		g.server.log.Info("opened the port of a Gateway; to reach it from outside, publish it", "port", port)
		if g.running {
			g.accept(port)
		}
	}
}

// run accepts until ctx ends.
func (g *gateway) run(ctx context.Context) error {
	g.mu.Lock()
	g.running = true
	for port := range g.listeners {
		g.accept(port)
	}
	g.mu.Unlock()
	var err error
	select {
	case <-ctx.Done():
	case err = <-g.failed:
	}
	g.close()
	g.loops.Wait()
	return err
}

// accept starts the loop of a port; g.mu is held.
func (g *gateway) accept(port uint16) {
	ln := g.listeners[port]
	g.loops.Go(func() {
		// Closing the listener ends the loop.
		err := listen.Accept(context.Background(), ln, func(c *net.TCPConn) { g.server.connections.start(g.server, c, g.serve) }, g.server.acceptFailing)
		if err != nil {
			select {
			case g.failed <- err:
			default: // one is enough
			}
		}
	})
}

func (g *gateway) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ln := range g.listeners {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			g.server.log.Warn("close a gateway's listener", "error", err)
		}
	}
}

func (g *gateway) serve(ctx context.Context, c *net.TCPConn) rest {
	if snap := g.server.snapshot.Load(); snap == nil || len(snap.Gateways) == 0 {
		g.bare.Do(func() {
			g.server.log.Warn("no Gateway is in force, so every request is answered 404: apply a Gateway that selects " +
				"istio: ingressgateway, or egressgateway for that one, and a VirtualService that names it under gateways, with meshctl apply -f FILE")
		})
	}
	client := listen.NewConn(c)
	local := listen.AddrPort(c.LocalAddr())
	conn := connection(exchange.Gateway, c, local)
	st := &stream{Connection: conn, client: client}
	err := g.server.named(st)
	if err == nil && st.headerless {
		err = errHeaderless
	}
	if err != nil {
		g.server.undecided(st, err)
		return nil
	}
	switch g.server.table.Load().GatewayProtocol(local.Port()) {
	case mesh.ProtocolTLS, mesh.ProtocolTCP:
		return g.pass(ctx, st)
	}
	err = client.SetReadDeadline(time.Now().Add(g.server.cfg.Settings.FirstByteTimeout))
	if err == nil && len(client.Buffered()) == 0 {
		err = client.Fill()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		g.server.stats.slowClients.Add(1)
	}
	if err != nil {
		_ = client.Close() // it has sent nothing
		return nil
	}
	// Everything else is HTTP/1, or told by its engine that it should be.
	kind, _, err := listen.Sniff(client, g.server.timeouts(g.server.cfg.Settings.FirstByteTimeout))
	g.server.connections.decided(client)
	if err == nil && kind == listen.HTTP2 {
		return g.server.serveHTTP2(ctx, client, conn)
	}
	return g.server.serveHTTP(ctx, client, conn)
}

// pass serves a connection to a port that is not HTTP: TLS is ended here, or goes as bytes where its server name says.
func (g *gateway) pass(ctx context.Context, st *stream) rest {
	s := g.server
	t := s.table.Load()
	port := st.OriginalDst.Port()
	isTLS := t.GatewayProtocol(port) == mesh.ProtocolTLS
	if isTLS {
		d, err := s.sniff(st, s.cfg.Settings.FirstByteTimeout)
		switch {
		case err == nil && d.kind == listen.Silent:
			err = os.ErrDeadlineExceeded
		case err == nil && d.hello == nil:
			err = errors.New("it is not TLS")
		}
		if err != nil {
			s.undecided(st, err)
			return nil
		}
		st.ServerName = d.hello.ServerName
	}
	s.connections.decided(st.client)
	if server := t.GatewayTLS(port, st.ServerName); isTLS && server != nil {
		return g.terminate(ctx, st, server)
	}
	to, ok := t.GatewaySession(st.OriginalDst, "", isTLS, st.ServerName, rand.Uint64())
	switch {
	case ok:
	case isTLS:
		g.refuse(ctx, st, alertUnrecognizedName)
		return nil
	default:
		to.Flag, to.Cluster = exchange.FlagNoRoute, "-"
	}
	st.target = target(to)
	return s.pass(ctx, st, nil)
}

// terminate ends the TLS of a client; what is inside is to be served.
func (g *gateway) terminate(ctx context.Context, st *stream, server *snapshot.TLSServer) rest {
	s := g.server
	conf, err := s.certificates.Server(server.Name)
	if err != nil {
		s.stats.closedServer.Add(1)
		s.log.Debug("refused a client: the server that it asks for is closed", "remote", st.Remote, "server", server.Name, "error", err)
		g.refuse(ctx, st, alertInternalError)
		return nil
	}
	conn := tls.Server(st.client, conf)
	shake, cancel := context.WithTimeout(ctx, s.cfg.Settings.HandshakeTimeout)
	err = conn.HandshakeContext(shake)
	cancel()
	if err != nil {
		s.log.Info("a client's tls handshake failed", "remote", st.Remote, "server", server.Name, "reason", s.stats.handshakeFailed(err), "error", err)
		g.part(st)
		return nil
	}
	state := conn.ConnectionState()
	st.TLSServer, st.ClientCert = server.Name, tlsconf.ForwardedCert(&state)
	if server.TLS.Mode == snapshot.ServerMeshMutual {
		if id, err := identity.PeerID(&state); err == nil {
			st.Peer = id.String()
			s.connections.provenUntil(st.client, state.PeerCertificates[0].NotAfter)
		}
	}
	switch {
	case server.Protocol != mesh.ProtocolHTTP:
		to, ok := s.table.Load().GatewaySession(st.OriginalDst, server.Name, false, "", rand.Uint64())
		if !ok {
			to.Flag, to.Cluster = exchange.FlagNoRoute, "-"
		}
		st.target, st.client = target(to), listen.NewConn(conn)
		return s.pass(ctx, st, nil)
	case state.NegotiatedProtocol == "h2", state.NegotiatedProtocol == mesh.ALPNHTTP2:
		return s.serveHTTP2(ctx, conn, st.Connection)
	}
	return s.serveHTTP(ctx, conn, st.Connection)
}

// Alerts of RFC 8446 section 6 that are sent before there is a server to send them.
const (
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// refuse ends the connection of a client that has sent its ClientHello, and tells it so by an alert.
func (g *gateway) refuse(ctx context.Context, st *stream, description byte) {
	const alert, fatal = 21, 2
	st.target = tcp.Target{Flag: exchange.FlagNoRoute, Cluster: "-"}
	if session, err := g.server.tcp.Connect(ctx, st.client, st.Connection, st.target); err == nil { // it is recorded there
		session.Abandon()
	}
	_ = st.client.SetWriteDeadline(time.Now().Add(g.server.cfg.Settings.HandshakeTimeout)) // a connection has deadlines
	_, _ = st.client.Write([]byte{alert, 3, 3, 0, 2, fatal, description})
	g.part(st)
}

const (
	partTime  = time.Second
	partBytes = 64 << 10
)

// part closes the connection of a client that was sent an alert. It may have sent more than was read, and closing at once
// would make the kernel reset the connection before the client has read the alert.
func (g *gateway) part(st *stream) {
	if st.client.CloseWrite() == nil && st.client.SetReadDeadline(time.Now().Add(partTime)) == nil {
		_, _ = io.CopyN(io.Discard, st.client, partBytes) // to its end, or no further
	}
	_ = st.client.Close() // there is nobody to tell more
}
