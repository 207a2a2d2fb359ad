package proxy

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestConnectionEndsWithItsProof: a session of mutual TLS ends when the client's certificate does.
func TestConnectionEndsWithItsProof(t *testing.T) {
	m := newMesh(t)
	m.app(mailIP, each(func(c net.Conn) {
		defer c.Close()
		_, _ = io.WriteString(c, "220 ready")
		_, _ = io.Copy(io.Discard, c)
	}))
	m.start()
	c := dial(t, m.at(mailIP))
	greeting := make([]byte, len("220 ready"))
	if _, err := io.ReadFull(c, greeting); err != nil {
		t.Fatal(err)
	}
	if n := m.server.connections.endUnproven(time.Now()); n != 0 {
		t.Fatalf("%d connections ended before their time", n)
	}
	if n := m.server.connections.endUnproven(time.Now().Add(2 * time.Hour)); n != 1 {
		t.Errorf("%d connections ended, want 1", n)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the session came to a polite end")
	}
}
