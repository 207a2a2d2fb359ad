//go:build linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

const (
	// dnsPatience is how long an answer of Docker's resolver is waited for: as long as a client waits by resolv.conf(5)'s
	// default timeout.
	dnsPatience = 5 * time.Second
	// dnsAtOnce bounds the queries that are passed on at once. Those beyond it are dropped, and asked again.
	dnsAtOnce = 64
	// maxDatagram is the largest message over UDP.
	maxDatagram = 65535
)

// DNS holds the sockets that the application's DNS is led to, and lends them to each process of mesh.UIDProxy that
// connects to mesh.DNSSocket. While nobody holds them it passes every query on to Docker's resolver: without a proxy,
// names resolve as without a mesh.
type DNS struct {
	lender
	resolver string
	udp      *net.UDPConn
	tcp      *net.TCPListener
	room     chan struct{}
}

// dnsPlace is where a DNS listens, to whom it hands over, and which resolver it knows.
type dnsPlace struct {
	address, socket, resolver string
	uid                       uint32
}

// ListenDNS binds mesh.PortDNS on loopback, so that only this namespace reaches it, and the hand-over socket.
func ListenDNS(log *slog.Logger) (*DNS, error) {
	return listenDNS(log, dnsPlace{
		address: net.JoinHostPort("127.0.0.1", strconv.Itoa(mesh.PortDNS)), socket: mesh.DNSSocket,
		resolver: net.JoinHostPort(mesh.DockerDNS, strconv.Itoa(dnsPort)), uid: mesh.UIDProxy,
	})
}

func listenDNS(log *slog.Logger, at dnsPlace) (_ *DNS, err error) {
	d := &DNS{lender: lender{what: "the sockets of DNS", uid: at.uid, log: log}, resolver: at.resolver, room: make(chan struct{}, dnsAtOnce)}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.tcp, err = listenTCP(at.address); err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	d.sockets = []lent{d.tcp}
	udp, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", d.tcp.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	d.udp = udp.(*net.UDPConn)
	d.sockets = []lent{reading{d.udp}, d.tcp}
	d.standIn = []func(){d.relayUDP, d.relayTCP}
	if err = d.listen(at.socket); err != nil {
		return nil, fmt.Errorf("listen for proxies that serve DNS: %w", err)
	}
	return d, nil
}

// reading is a socket whose deadline is for reads alone: answers to queries of before may still be written.
type reading struct{ *net.UDPConn }

func (r reading) SetDeadline(at time.Time) error { return r.SetReadDeadline(at) }

func (d *DNS) relayUDP() {
	query := make([]byte, maxDatagram)
	for {
		n, from, err := d.udp.ReadFromUDPAddrPort(query)
		if err != nil {
			if over(err) {
				return
			}
			continue
		}
		select {
		case d.room <- struct{}{}:
		default:
			continue
		}
		asked := append([]byte(nil), query[:n]...)
		go func() {
			defer func() { <-d.room }()
			if answer := d.ask(asked); answer != nil {
				_, _ = d.udp.WriteToUDPAddrPort(answer, from) // a client that is gone needs none
			}
		}()
	}
}

// ask is the resolver's answer to a query over UDP; nil where none comes, which the client finds out by itself.
func (d *DNS) ask(query []byte) []byte {
	conn, err := d.dial("udp")
	if err != nil {
		return nil
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(dnsPatience)); err != nil {
		return nil
	}
	if _, err := conn.Write(query); err != nil {
		return nil
	}
	answer := make([]byte, maxDatagram)
	n, err := conn.Read(answer)
	if err != nil {
		return nil
	}
	return answer[:n]
}

func (d *DNS) dial(network string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dnsPatience}
	return dialer.DialContext(context.Background(), network, d.resolver)
}

func (d *DNS) relayTCP() {
	for {
		conn, err := d.tcp.AcceptTCP()
		if err != nil {
			if over(err) {
				return
			}
			continue
		}
		select {
		case d.room <- struct{}{}:
			go func() {
				defer func() { <-d.room }()
				d.pass(conn)
			}()
		default:
			_ = conn.Close()
		}
	}
}

// pass joins a client's connection to one to the resolver. Either end closes both.
func (d *DNS) pass(client *net.TCPConn) {
	defer func() { _ = client.Close() }()
	server, err := d.dial("tcp")
	if err != nil {
		return
	}
	defer server.Close()
	until := time.Now().Add(2 * dnsPatience)
	if errors.Join(client.SetDeadline(until), server.SetDeadline(until)) != nil {
		return
	}
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(client, server)
}
