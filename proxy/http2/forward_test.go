package http2

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/composure-mesh/composure/proxy/http1"
)

// listen serves each connection of a fresh listener with handler until the test ends.
func listen(tb testing.TB, cfg Config, handler func(*ServerStream)) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = NewServerConn(nc, cfg, handler).Serve(ctx) })
		}
	})
	tb.Cleanup(func() { l.Close(); cancel(); wg.Wait() })
	return l.Addr().String()
}

// dial opens a client connection that ends with the test.
func dial(tb testing.TB, addr string, cfg Config) *ClientConn {
	tb.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	c := NewClientConn(nc, cfg)
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run() }()
	tb.Cleanup(func() { c.Close(); <-done })
	return c
}

// relay is the reference forwarder: one stream to one stream.
func relay(up *ClientConn) func(*ServerStream) {
	return func(down *ServerStream) {
		if down.Fault != nil {
			_ = down.Respond(down.Fault.Status, nil, true)
			return
		}
		s, err := up.Open(&down.Request, down.Request.Framing == http1.NoBody)
		if err != nil {
			_ = down.Respond(503, nil, true)
			return
		}
		defer s.Close()
		down.OnReset(func(error) { s.Reset(Cancel) })
		var wg sync.WaitGroup
		defer wg.Wait()
		defer down.StopReading()
		if down.Request.Framing != http1.NoBody {
			wg.Go(func() {
				if err := pump(s, down); err != nil {
					var sent *StreamError
					if !errors.As(err, &sent) || sent.Code != NoError {
						s.Reset(Cancel)
					}
				}
			})
		}
		for {
			r, err := s.Response()
			if err != nil {
				down.Reset(codeOf(err))
				return
			}
			end := r.Status >= 200 && r.Framing == http1.NoBody
			if down.Respond(r.Status, r.Header, end) != nil || end {
				return
			}
			if r.Status >= 200 {
				break
			}
		}
		if err := pump(down, s); err != nil {
			down.Reset(codeOf(err))
		}
	}
}

func codeOf(err error) Code {
	var s *StreamError
	if errors.As(err, &s) {
		return s.Code
	}
	return InternalError
}

type source interface {
	Read(p []byte) (int, error)
	Trailer() http1.Header
}

type sink interface {
	Write(p []byte, last bool) error
	WriteTrailer(t http1.Header) error
}

func pump(to sink, from source) error {
	buf := http1.GetBuffer()
	defer http1.PutBuffer(buf)
	for {
		n, err := from.Read(buf[:])
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		t := http1.Header(nil)
		if ended {
			t = from.Trailer()
		}
		if n > 0 || ended && len(t) == 0 {
			if err := to.Write(buf[:n], ended && len(t) == 0); err != nil {
				return err
			}
		}
		if ended {
			if len(t) > 0 {
				return to.WriteTrailer(t)
			}
			return nil
		}
	}
}

func fieldOf(name, value string) (http1.Field, error) {
	return http1.ParseField([]byte(name), []byte(value))
}
