package proxy

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestSandboxGone ends the lease of the listeners: the proxy is not ready until it has others.
func TestSandboxGone(t *testing.T) {
	m := newMesh(t)
	cfg := m.serverConfig(nil)
	leases := make(chan *listen.Held, 1)
	cfg.Capture.Acquire = func(ctx context.Context) (*listen.Held, error) {
		select {
		case h := <-leases:
			return h, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	first := listen.Own(nil, m.inbound)
	leases <- first
	p := run(t, cfg)
	awaitReady(t, p)
	_, changed := p.ready.State()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("it stays ready")
	}
	if reasons, _ := p.ready.State(); len(reasons) != 1 || !strings.Contains(reasons[0], "docker compose restart web-mesh-sandbox") {
		t.Errorf("not ready because %q", reasons)
	}
	leases <- listen.Own(nil, listenTCP(t, "127.0.0.1:0"))
	awaitReady(t, p)
}

func TestInZone(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, c := range []struct{ dst, local, remote, want string }{
		{"[fe80::1]:80", "[fe80::1%eth0]:15006", "[fe80::2%eth0]:1", "[fe80::1%eth0]:80"},
		{"[fe80::1]:80", "[fd00::1]:15006", "[fe80::2%eth1]:1", "[fe80::1%eth1]:80"}, // redirected to another address of the interface
		{"[fe80::1]:80", "[fd00::1]:15006", "[fd00::2]:1", "[fe80::1]:80"},
		{"[fe80::1]:15006", "[fe80::1%eth0]:15006", "[fe80::2%eth0]:1", "[fe80::1%eth0]:15006"},
		{"[fd00::1]:80", "[fe80::1%eth0]:15006", "[fe80::2%eth0]:1", "[fd00::1]:80"},
		{"169.254.1.1:80", "10.0.0.1:15006", "10.0.0.2:1", "169.254.1.1:80"},
	} {
		if got := inZone(ap(c.dst), ap(c.local), ap(c.remote)); got != ap(c.want) {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// later is an identity whose first certificate comes late.
type later struct {
	Identity
	ready chan struct{}
}

func (l later) Ready() <-chan struct{} { return l.ready }

func (l later) Current() *identity.Material {
	select {
	case <-l.ready:
		return l.Identity.Current()
	default:
		return nil
	}
}

// TestCertificateComesLate has a server's proxy that begins before its certificate has come, as one that takes another's
// place does: what comes from peers waits for it.
func TestCertificateComesLate(t *testing.T) {
	m := newMesh(t)
	m.client = run(t, m.clientConfig(listen.Own(m.outbound, nil)))
	awaitReady(t, m.client)
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	certificate := later{cfg.Identity, make(chan struct{})}
	cfg.Identity = certificate
	m.server = run(t, cfg)
	m.web()
	c := httpClient(t, m.at(webIP), "")
	answered := make(chan int, 1)
	go func() {
		resp, err := c.Get("http://web/")
		if err != nil {
			answered <- 0
			return
		}
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	select {
	case status := <-answered:
		t.Fatalf("before the certificate: status %d", status)
	case <-m.server.listening:
		t.Fatal("it accepts before it has a certificate")
	case <-time.After(200 * time.Millisecond):
	}
	close(certificate.ready)
	if status := <-answered; status != http.StatusOK {
		t.Errorf("after the certificate: status %d", status)
	}
}
