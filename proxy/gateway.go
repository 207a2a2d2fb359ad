package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
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
				"istio: ingressgateway, and a VirtualService that names it under gateways, with meshctl apply -f FILE")
		})
	}
	client := listen.NewConn(c)
	local := listen.AddrPort(c.LocalAddr())
	switch g.server.table.Load().GatewayProtocol(local.Port()) {
	case mesh.ProtocolTLS, mesh.ProtocolTCP:
		return g.pass(ctx, &stream{Connection: connection(exchange.Gateway, c, local), client: client})
	}
	err := client.SetReadDeadline(time.Now().Add(g.server.cfg.FirstRequest))
	if err == nil {
		err = client.Fill()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		g.server.stats.slowClients.Add(1)
	}
	if err != nil {
		_ = client.Close() // it has sent nothing
		return nil
	}
	conn := connection(exchange.Gateway, c, local)
	// Everything else is HTTP/1, or told by its engine that it should be.
	kind, _, err := listen.Sniff(client, g.server.timeouts(g.server.cfg.FirstRequest))
	g.server.connections.decided(client)
	if err == nil && kind == listen.HTTP2 {
		return g.server.serveHTTP2(ctx, client, conn)
	}
	return g.server.serveHTTP(ctx, client, conn)
}

// pass serves a connection to a port that is not HTTP as bytes: TLS goes where its server name says, without being ended
// here.
func (g *gateway) pass(ctx context.Context, st *stream) rest {
	s := g.server
	t := s.table.Load()
	port := st.OriginalDst.Port()
	isTLS := t.GatewayProtocol(port) == mesh.ProtocolTLS
	if isTLS {
		d, err := s.sniff(st, s.cfg.FirstRequest)
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
	to, ok := t.GatewaySession(st.OriginalDst, isTLS, st.ServerName, rand.Uint64())
	if !ok {
		to.Flag, to.Cluster = exchange.FlagNoRoute, "-"
	}
	st.target = target(to)
	return s.pass(ctx, st, nil)
}
