package proxy

import (
	"context"
	"net"
	"slices"
	"time"
)

// drainQuiet is how long a connection may be quiet in a drain before it counts as idle and is closed: TCP sessions
// on which neither side sends, and clients that have not said anything yet. An idle HTTP connection is closed at
// once, one with a request under way when that is answered.
const drainQuiet = 5 * time.Second

// drain ends the connections under way, gently and within the setting drain. It begins when nothing is accepted any more:
// new connections wait in the listeners' backlog for the next proxy.
func (s *Server) drain(ctx context.Context) {
	begun := time.Now()
	s.draining.Store(true)
	s.ready.Set(notDraining, "the proxy was told to stop")
	if s.cfg.Capture != nil && cutOff(net.Interfaces()) {
		s.log.Info("nothing to drain: the network namespace is dead", "connections", s.connections.count())
		s.connections.closeAll()
		return
	}
	s.log.Info("draining", "connections", s.connections.count(), "limit", s.cfg.Settings.Drain)
	s.engine.Drain()
	s.tcp.Drain(drainQuiet)
	quiet := min(drainQuiet, s.cfg.Settings.Drain)
	left := s.connections.wait(ctx, quiet)
	if left > 0 {
		s.connections.closeUndecided()
		left = s.connections.wait(ctx, s.cfg.Settings.Drain-quiet)
	}
	if left > 0 {
		s.log.Warn("the drain took too long: closing what is left", "connections", left)
	}
	s.connections.closeAll()
	s.log.Info("drained", "took", time.Since(begun).Round(time.Millisecond))
}

// cutOff reports whether the loopback is all there is: what is under way to and from other workloads has no end then, and
// who restarts the proxy is not to wait for one.
func cutOff(interfaces []net.Interface, err error) bool {
	return err == nil && !slices.ContainsFunc(interfaces, func(i net.Interface) bool { return i.Flags&net.FlagLoopback == 0 })
}
