package proxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/composure-mesh/composure/proxy/listen"
)

// Times of the self-test.
const (
	selfTestEvery   = 10 * time.Second
	selfTestRetry   = time.Second // after a failure
	selfTestTimeout = 2 * time.Second
)

const selfTestGreeting = "composure self-test "

// answerSelfTest takes in a connection that was made to mesh.SelfTestIP and arrived at the outbound listener: it tells
// the dialler which connection it is. While a proxy is replaced two of them accept at the same listener, and either
// may get the other's test, so the answer goes by the connection itself.
func answerSelfTest(c *net.TCPConn) {
	_ = c.SetWriteDeadline(time.Now().Add(selfTestTimeout)) // on failure the dialler gets no answer, and says so
	_, _ = fmt.Fprintf(c, "%s%s\n", selfTestGreeting, listen.AddrPort(c.RemoteAddr()))
	_ = c.Close()
}

// selfTest proves that capture is live: a connection to an address that nobody serves must arrive at the outbound
// listener, this very one, told by its port.
func selfTest(ctx context.Context, target netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", target.String())
	if err != nil {
		return fmt.Errorf("a connection to %s did not come back, so nothing is captured: %w", target, err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(selfTestTimeout)); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(c, 128).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("a connection to %s went elsewhere than to the outbound listener: %w", target, err)
	}
	local := listen.AddrPort(c.LocalAddr()).String()
	if got := strings.TrimSpace(string(line)); got != selfTestGreeting+local {
		return fmt.Errorf("a connection to %s from %s was answered %q by somebody else than a proxy", target, local, got)
	}
	return nil
}

// runSelfTest keeps readiness true to the self-test.
func (s *Server) runSelfTest(ctx context.Context) error {
	select {
	case <-s.listening:
	case <-ctx.Done():
		return nil
	}
	passed := false
	for !s.draining.Load() {
		err := selfTest(ctx, s.cfg.Capture.SelfTest)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the proxy ends: the test says nothing
		}
		wait := selfTestEvery
		if err == nil {
			s.ready.Set(needSelfTest, "")
			if !passed {
				s.log.Info("capture is live: the self-test passed")
			}
		} else {
			s.ready.Set(needSelfTest, err.Error())
			wait = selfTestRetry
			if passed {
				s.log.Error("capture no longer works", "error", err)
			}
		}
		passed = err == nil
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}
