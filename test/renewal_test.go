//go:build suites

package test

import (
	"strings"
	"testing"
	"time"
)

// TestRenewal lives through several lives of the certificates under load, with a connection that stays open.
func TestRenewal(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": lifecycleCompose})
	p.inject("--cert-lifetime", "1m")
	p.up()
	serials := func() string {
		var lines []string
		for line := range strings.Lines(p.meshctl("certs")) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == "proxy" {
				lines = append(lines, f[0]+" "+f[len(f)-1])
			}
		}
		return strings.Join(lines, "\n")
	}
	before := serials()
	start := time.Now()
	// One connection for all requests, and one of its own for each: neither may break.
	out := p.exec("client", "sh", "-c", `
		seq 1 750 | sed 's|.*|url = "http://server:8000/hostname"|' > /tmp/urls
		curl -sS --fail --rate 10/s -K /tmp/urls >/dev/null 2>/tmp/kept && echo kept ok || cat /tmp/kept &
		bad=0
		for i in $(seq 1 360); do curl -sS --fail -m 5 -o /dev/null http://server:8000/hostname || bad=$((bad+1)); sleep 0.2; done
		wait
		echo "bad $bad"`)
	if !strings.Contains(out, "kept ok") || !strings.Contains(out, "bad 0") {
		t.Errorf("requests failed while certificates were renewed: %s", out)
	}
	if after := serials(); after == before || time.Since(start) < 65*time.Second {
		t.Errorf("after %s the certificates are still\n%s", time.Since(start), after)
	}
	for line := range strings.Lines(p.meshctl("certs")) {
		if strings.Contains(line, "expired") {
			t.Errorf("a certificate expired: %s", line)
		}
	}
}
