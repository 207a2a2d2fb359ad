package proxy

import (
	"context"
	"errors"

	"github.com/composure-mesh/composure/proxy/listen"
)

// serveProven serves a client that must prove who it is, by the mutual TLS of the mesh. Until it has, nothing is asked of the
// application: it learns of nobody who may not talk to it.
func (s *Server) serveProven(ctx context.Context, st *stream) rest {
	found, err := s.sniffTLS(st, meshSilence)
	if err != nil && !isEnd(err) {
		s.undecided(st, err)
		return nil
	}
	if !s.isMesh(st, found.hello) {
		s.refusePlain(st)
		return nil
	}
	s.connections.decided(st.client)
	st.ServerName = found.hello.ServerName
	return s.terminate(ctx, st)
}

// stillPlain notes a client that sends plain text, which ends when it may do so no more. It reports false where that has
// happened since the connection began.
func (s *Server) stillPlain(st *stream) bool {
	port := st.OriginalDst.Port()
	s.connections.plainTo(st.client, port)
	if s.table.Load().TakesPlainText(st.Remote.Addr(), port) {
		return true
	}
	s.refusePlain(st)
	return false
}

var errPlain = errors.New("it is no mutual tls of the mesh, and the port is STRICT")

// refusePlain ends the connection of a client that has not proved who it is, as Istio does: without a word.
func (s *Server) refusePlain(st *stream) {
	s.stats.plainRefused.Add(1)
	_, source := s.table.Load().Mode(st.OriginalDst.Port())
	s.log.Info("refused a connection", "remote", st.Remote, "original_destination", st.OriginalDst, "error", errPlain, "by", source)
	listen.Reset(st.client)
}
