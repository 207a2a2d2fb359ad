package http2

import (
	"net"
	"os/exec"
	"strings"
	"testing"
)

// TestH2spec runs the conformance suite of others (build/tools.sh h2spec) against a server that answers everything.
func TestH2spec(t *testing.T) {
	h2spec, err := exec.LookPath("h2spec")
	if err != nil {
		t.Skip("SKIPPED: h2spec is not on PATH; build/tools.sh h2spec makes it in .cache/tools")
	}
	addr := listen(t, Config{}, func(s *ServerStream) {
		if s.Request.Framing != 0 {
			buf := make([]byte, 4<<10)
			for {
				if _, err := s.Read(buf); err != nil {
					break
				}
			}
		}
		if s.Respond(200, nil, false) == nil {
			_ = s.Write([]byte("composed\n"), true)
		}
	})
	host, port, _ := net.SplitHostPort(addr)
	out, err := exec.Command(h2spec, "-S", "-h", host, "-p", port, "-o", "2").CombinedOutput()
	lines := strings.TrimSpace(string(out))
	t.Log(lines[strings.LastIndexByte(lines, '\n')+1:])
	if err != nil {
		if i := strings.Index(lines, "Failures:"); i >= 0 {
			lines = lines[i:]
		}
		t.Errorf("h2spec: %v\n%s", err, lines)
	}
}
