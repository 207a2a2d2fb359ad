package proxy

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/composure-mesh/composure/proxy/listen"
)

// TestConnectionLimit has one client too many.
func TestConnectionLimit(t *testing.T) {
	m := newMesh(t)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Settings = set("max-connections=2")
	p := run(t, cfg)
	awaitReady(t, p)
	for range cfg.Settings.MaxConnections {
		dial(t, m.at(webIP)) // silent, and so open
	}
	c, err := net.Dial("tcp", m.at(webIP))
	if err == nil { // else the reset was faster
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	if got := p.allStats()["listen.over_limit"]; got != 1 {
		t.Errorf("%d counted, want 1", got)
	}
}
