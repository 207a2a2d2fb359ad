package proxy

import (
	"errors"
	"slices"
	"time"

	"github.com/composure-mesh/composure/proxy/proxyprotocol"
)

// headerError says what is wrong with how a connection to a port of the setting proxy-protocol begins.
type headerError struct{ error }

func (e *headerError) Unwrap() error { return e.error }

var errHeaderless = &headerError{errors.New("the port takes connections that begin with a PROXY header, or with mutual tls of the mesh")}

// named takes the PROXY header off a connection to a port that wants one, and learns from it who the client is. Whether a
// header comes is not guessed: without one there is only the mutual TLS of the mesh, which says itself who is there.
func (s *Server) named(st *stream) error {
	if !slices.Contains(s.cfg.Settings.ProxyProtocol, st.OriginalDst.Port()) {
		return nil
	}
	c := st.client
	if err := c.SetReadDeadline(time.Now().Add(s.cfg.Settings.HandshakeTimeout)); err != nil {
		return err
	}
	for {
		if err := c.Fill(); err != nil {
			return err
		}
		if c.Buffered()[0] == tlsHandshake {
			st.headerless = true
			break
		}
		h, n, err := proxyprotocol.Parse(c.Buffered())
		if errors.Is(err, proxyprotocol.ErrIncomplete) {
			continue
		}
		if err != nil {
			return &headerError{err}
		}
		c.Skip(n)
		st.Client = h.Source
		break
	}
	return c.SetReadDeadline(time.Time{})
}

// tlsHandshake is the first byte of a ClientHello (RFC 8446 section 5.1).
const tlsHandshake = 0x16
