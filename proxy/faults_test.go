package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/listen"
)

// faulty is an application that fails as its requests ask it to. Each request has a name of its own, of which every
// body consists, so that a byte of another's shows.
type faulty struct {
	mu    sync.Mutex
	taken map[string]int // how often each request came
	mixed []string
	open  sync.WaitGroup // connections
}

// faults are what the application does, by path.
var faults = []string{
	"/whole", "/chunked", "/interim", "/close", "/surplus", "/early", // and the client gets an answer
	"/no-head", "/mid-head", "/mid-body", "/mid-chunk", "/stall", "/stall-body",
}

func patternOf(name string, size int) []byte {
	return bytes.Repeat([]byte(name), size/len(name)+1)[:size]
}

func (f *faulty) serve(c net.Conn) {
	f.open.Add(1)
	defer f.open.Done()
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		name := r.Header.Get("X-Name")
		f.mu.Lock()
		f.taken[name]++
		f.mu.Unlock()
		if r.URL.Path == "/early" {
			fmt.Fprintf(c, "HTTP/1.1 413 Too Large\r\nX-Name: %s\r\nContent-Length: 0\r\n\r\n", name)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			return
		}
		body, err := io.ReadAll(r.Body)
		if !bytes.Equal(body, patternOf(name, len(body))) {
			f.mu.Lock()
			f.mixed = append(f.mixed, name)
			f.mu.Unlock()
		}
		if err != nil {
			return
		}
		size, _ := strconv.Atoi(r.URL.Query().Get("size"))
		answer := patternOf(name, size)
		half := answer[:size/2]
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Name: %s\r\n", name)
		length := head + fmt.Sprintf("Content-Length: %d\r\n\r\n", size)
		chunked := head + "Transfer-Encoding: chunked\r\n\r\n"
		switch r.URL.Path {
		case "/whole":
			fmt.Fprintf(c, "%s%s", length, answer)
			continue
		case "/interim":
			fmt.Fprintf(c, "HTTP/1.1 103 Early Hints\r\nLink: </%s>\r\n\r\n%s%s", name, length, answer)
			continue
		case "/chunked":
			fmt.Fprintf(c, "%s%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", chunked, len(half), half, size-len(half), answer[len(half):])
			continue
		case "/close": // without a word before: the next request may be on its way
			fmt.Fprintf(c, "%s%s", length, answer)
			return
		case "/surplus":
			fmt.Fprintf(c, "%s%sHTTP/1.1 200 OK\r\nX-Name: surplus\r\nContent-Length: 7\r\n\r\nsurplus", length, answer)
			continue
		case "/stall":
			_, _ = io.Copy(io.Discard, c) // until the proxy gives up
			return
		case "/stall-body":
			fmt.Fprintf(c, "%s%s", length, half)
			_, _ = io.Copy(io.Discard, c)
			return
		case "/no-head":
		case "/mid-head":
			fmt.Fprint(c, head)
		case "/mid-body":
			fmt.Fprintf(c, "%s%s", length, half)
		case "/mid-chunk":
			fmt.Fprintf(c, "%s%x\r\n%s", chunked, size, half)
		}
		listen.Reset(c)
		return
	}
}

// dribble is a body of the given size that breaks off after some bytes, if it is told to.
type dribble struct {
	data  []byte
	until int
}

var errBrokenOff = errors.New("the client breaks off")

func (d *dribble) Read(p []byte) (int, error) {
	if d.until == 0 {
		if len(d.data) == 0 {
			return 0, io.EOF
		}
		return 0, errBrokenOff
	}
	n := copy(p[:min(len(p), d.until)], d.data)
	d.data, d.until = d.data[n:], d.until-n
	return n, nil
}

// TestFaults has clients of HTTP/1 and HTTP/2, with mutual TLS between the proxies and without, whose servers break off,
// stall and answer early, and who do so themselves: whatever happens, a POST is delivered once, an answer is that of its
// request, and nothing is left behind.
func TestFaults(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	t.Run("load", func(t *testing.T) {
		app := &faulty{taken: map[string]int{}}
		m := newMesh(t)
		m.app(webIP, each(app.serve))
		at, _ := m.apps.Load(webIP)
		client, server := m.clientConfig(listen.Own(m.outbound, nil)), m.serverConfig(listen.Own(nil, m.inbound))
		declare(t, server.Snapshot, at.(netip.AddrPort).Port(), mesh.ProtocolHTTP) // what comes as HTTP/2 is translated
		// So that what is idle at the end goes soon.
		client.Settings, server.Settings = set("drain=10s", "upstream-idle-timeout=1s"), set("drain=10s", "upstream-idle-timeout=1s")
		m.client, m.server = run(t, client), run(t, server)
		awaitReady(t, m.client)
		awaitReady(t, m.server)
		var clients sync.WaitGroup
		for name, c := range map[string]*http.Client{
			"one": httpClient(t, m.at(webIP), ""), "two": h2client(t, m.at(webIP)), "plain-one": httpClient(t, m.direct(webIP), ""), "plain-two": h2client(t, m.direct(webIP)),
		} {
			for i := range 4 {
				clients.Go(func() {
					random := rand.New(rand.NewPCG(uint64(i), uint64(len(name)))) //nolint:gosec // to be repeatable
					for n := range 30 {
						request(t, c, fmt.Sprintf("<%s-%d-%d>", name, i, n), faults[random.IntN(len(faults))], random)
					}
				})
			}
		}
		for i := range 4 {
			clients.Go(func() {
				for n := range 20 {
					breakOff(t, []string{m.at(webIP), m.direct(webIP)}[n%2], fmt.Sprintf("<raw-%d-%d>", i, n), n)
				}
			})
		}
		clients.Wait()
		m.client.halt(t)
		m.server.halt(t)
		app.open.Wait() // the proxies have closed what they opened
		app.mu.Lock()
		defer app.mu.Unlock()
		if len(app.mixed) > 0 {
			t.Errorf("requests with bytes of others: %q", app.mixed)
		}
		if len(app.taken) < 100 {
			t.Errorf("%d requests arrived", len(app.taken))
		}
		for name, n := range app.taken {
			if n > 1 && strings.Contains(name, "POST") {
				t.Errorf("%s was delivered %d times", name, n)
			}
		}
		for _, p := range []*running{m.client, m.server} {
			if n := p.allStats()["connections.panics"]; n != 0 {
				t.Errorf("%d panics", n)
			}
		}
	})
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g, d := runtime.NumGoroutine(), openDescriptors(t)
		if g <= goroutines && d <= descriptors {
			break
		}
		if time.Now().After(until) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d descriptors, %d and %d before:\n%s", g, d, goroutines, descriptors, buf[:runtime.Stack(buf, true)])
		}
	}
}

// request sends one request and holds what comes of it to what may.
func request(t *testing.T, c *http.Client, name, path string, random *rand.Rand) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	if strings.HasPrefix(path, "/stall") {
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	}
	defer cancel()
	size := random.IntN(100 << 10)
	method, body := http.MethodGet, io.Reader(nil)
	whole := true
	if random.IntN(2) == 0 {
		method = http.MethodPost
		name += "POST"
		d := &dribble{data: patternOf(name, 1+random.IntN(200<<10))}
		d.until = len(d.data)
		if whole = random.IntN(4) > 0; !whole {
			d.until /= 2
		}
		body = d
	}
	r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://web%s?size=%d", path, size), body)
	if err != nil {
		t.Error(err)
		return
	}
	r.Header.Set("X-Name", name)
	resp, err := c.Do(r)
	if err != nil {
		if whole && !strings.HasPrefix(path, "/stall") && path != "/early" {
			t.Errorf("%s %s: %v, want at least an answer of the proxy", path, name, err)
		}
		return
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	from := resp.Header.Get("X-Name")
	switch {
	case from != "" && from != name:
		t.Errorf("%s %s got the answer of %s", path, name, from)
	case from == "" && bytes.ContainsAny(got, "<>"):
		t.Errorf("%s %s: the proxy's own answer has %q", path, name, got)
	case from != "" && !bytes.Equal(got, patternOf(name, len(got))):
		t.Errorf("%s %s: the answer has bytes of another", path, name)
	case err == nil && resp.StatusCode == http.StatusOK && len(got) != size:
		t.Errorf("%s %s: a clean end after %d of %d bytes", path, name, len(got), size)
	}
	switch path {
	case "/whole", "/chunked", "/interim":
		if whole && (resp.StatusCode != http.StatusOK || err != nil) && method == http.MethodGet {
			t.Errorf("%s %s: %d, %v", path, name, resp.StatusCode, err)
		}
	case "/mid-body", "/mid-chunk", "/stall-body":
		if err == nil && resp.StatusCode == http.StatusOK {
			t.Errorf("%s %s ends as if it were whole", path, name)
		}
	case "/no-head", "/mid-head":
		if resp.StatusCode == http.StatusOK {
			t.Errorf("%s %s: 200", path, name)
		}
	}
}

// breakOff resets a connection of HTTP/1 in the midst of a request: of its head, its body or a chunk.
func breakOff(t *testing.T, addr, name string, kind int) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	name += "POST"
	head := "POST /whole?size=10 HTTP/1.1\r\nHost: web\r\nX-Name: " + name + "\r\n"
	body := patternOf(name, 50<<10)
	switch kind % 4 {
	case 0:
		fmt.Fprint(c, head[:len(head)/2])
	case 1:
		fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", head, 2*len(body), body)
	case 2:
		fmt.Fprintf(c, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s", head, 2*len(body), body)
	case 3: // the whole, and nobody to take the answer
		fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	listen.Reset(c)
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
