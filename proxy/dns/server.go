package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// patience is how long the resolver may take to answer: resolv.conf(5)'s default timeout.
	patience = 5 * time.Second
	// idle is how long a client over TCP may say nothing.
	idle = 30 * time.Second
	// atOnce bounds the queries, and the connections over TCP, that wait for the resolver at once. Queries beyond it are
	// dropped, and asked again.
	atOnce = 256
	// pause keeps a read that fails from being tried in a busy loop.
	pause = 10 * time.Millisecond
)

// Config is what a Server needs.
type Config struct {
	// Names yields the names in force.
	Names func() Names
	// Resolver is the address of Docker's resolver.
	Resolver string
}

// Server answers queries over UDP and TCP.
type Server struct {
	cfg  Config
	room chan struct{}
	turn atomic.Uint32

	// Counters, for /stats.
	Answered, Passed, Dropped atomic.Uint64
}

// New makes a Server.
func New(cfg Config) *Server { return &Server{cfg: cfg, room: make(chan struct{}, atOnce)} }

// Serve answers what comes to the two sockets until both are closed, or the read deadline of the first has passed; what it
// has begun then is finished.
func (s *Server) Serve(udp *net.UDPConn, tcp *net.TCPListener) {
	var loops, queries sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	loops.Go(func() { s.serveUDP(udp, &queries) })
	loops.Go(func() { s.serveTCP(ctx, tcp, &queries) })
	loops.Wait()
	cancel()
	queries.Wait()
}

func (s *Server) serveUDP(conn *net.UDPConn, queries *sync.WaitGroup) {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			time.Sleep(pause)
			continue
		}
		if answer := Answer(buf[:n], s.cfg.Names(), 0, s.turn.Add(1)); answer != nil {
			s.Answered.Add(1)
			_, _ = conn.WriteToUDPAddrPort(answer, from) // a client that is gone needs none
			continue
		}
		if !s.enter() {
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		queries.Go(func() {
			defer s.leave()
			if answer := s.orOurs(s.ask(query), query, 0); answer != nil {
				_, _ = conn.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// orOurs is the resolver's answer, or ours to a name that it does not know.
func (s *Server) orOurs(theirs, query []byte, limit int) []byte {
	const rcode = 3 // its byte (RFC 1035 section 4.1.1)
	if len(theirs) >= headerSize && theirs[rcode]&0xf == byte(dnsmessage.RCodeSuccess) {
		return theirs
	}
	if ours := answer(query, s.cfg.Names(), limit, s.turn.Add(1), Fallback); ours != nil {
		return ours
	}
	return theirs
}

func (s *Server) enter() bool {
	select {
	case s.room <- struct{}{}:
		s.Passed.Add(1)
		return true
	default:
		s.Dropped.Add(1)
		return false
	}
}

func (s *Server) leave() { <-s.room }

// ask is the resolver's answer to a query over UDP, as it is; nil where none comes, which the client finds out by itself.
func (s *Server) ask(query []byte) []byte {
	conn, err := s.dial("udp")
	if err != nil {
		return nil
	}
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(patience)) != nil {
		return nil
	}
	if _, err := conn.Write(query); err != nil {
		return nil
	}
	buf := make([]byte, maxMessage)
	n, err := conn.Read(buf) // the socket is connected and new: nothing else arrives on it
	if err != nil {
		return nil
	}
	return buf[:n]
}

func (s *Server) dial(network string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	return d.DialContext(context.Background(), network, s.cfg.Resolver)
}

func (s *Server) serveTCP(ctx context.Context, ln *net.TCPListener, queries *sync.WaitGroup) {
	for {
		conn, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(pause)
			continue
		}
		if !s.enter() {
			_ = conn.Close()
			continue
		}
		queries.Go(func() {
			defer s.leave()
			defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })() // after the query under way
			s.converse(conn)
			_ = conn.Close() // whatever happened, it is over
		})
	}
}

// converse answers the queries of one connection, one after the other (RFC 7766 allows it).
func (s *Server) converse(client net.Conn) {
	var resolver net.Conn
	defer func() {
		if resolver != nil {
			_ = resolver.Close()
		}
	}()
	for {
		if client.SetReadDeadline(time.Now().Add(idle)) != nil {
			return
		}
		query, err := receive(client)
		if err != nil {
			return
		}
		answer := Answer(query, s.cfg.Names(), maxMessage, s.turn.Add(1))
		if answer != nil {
			s.Answered.Add(1)
		} else {
			if resolver == nil {
				if resolver, err = s.dial("tcp"); err != nil {
					resolver = nil
					return
				}
			}
			if answer, err = exchange(resolver, query); err != nil {
				return // the client sees its connection end, and asks again
			}
			answer = s.orOurs(answer, query, maxMessage)
		}
		if client.SetWriteDeadline(time.Now().Add(patience)) != nil || send(client, answer) != nil {
			return
		}
	}
}

func exchange(conn net.Conn, query []byte) ([]byte, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if err := send(conn, query); err != nil {
		return nil, err
	}
	return receive(conn)
}

// receive reads one message with its length before it (RFC 1035 section 4.2.2).
func receive(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

func send(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)) //nolint:gosec // it came with such a length, or is bounded by it
	return err
}
