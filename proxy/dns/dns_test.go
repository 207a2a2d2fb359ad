package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// zone is Names of a test.
type zone map[string][]netip.Addr

func (z zone) Resolve(name []byte) ([]netip.Addr, Meaning) {
	a, ok := z[string(name)]
	switch {
	case !ok:
		return nil, Unknown
	case string(name) == "reviews" || string(name) == "known":
		return a, Fallback
	}
	return a, Known
}

func addresses(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

var testZone = zone{
	"reviews.default": addresses("10.0.0.1", "10.0.0.2", "fd00::1"),
	"empty.default":   nil,
	"reviews":         addresses("240.240.0.1"), // the resolver does not know it
	"known":           addresses("240.240.0.2"), // and this one it does
	"many.default":    many(),
}

func many() (out []netip.Addr) {
	for i := range 200 {
		out = append(out, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
	}
	return out
}

// query is a question, with what an EDNS client says that it takes unless that is 0.
func query(tb testing.TB, name string, typ dnsmessage.Type, edns int, more ...func(*dnsmessage.Message)) []byte {
	tb.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(edns, dnsmessage.RCodeSuccess, true); err != nil {
			tb.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	for _, f := range more {
		f(&m)
	}
	b, err := m.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestAnswer(t *testing.T) {
	const pass = "pass"
	for _, c := range []struct {
		name  string
		typ   dnsmessage.Type
		edns  int
		more  func(*dnsmessage.Message)
		want  string // the addresses, or pass
		flags string
	}{
		{name: "reviews.default.", typ: dnsmessage.TypeA, want: "[10.0.0.1 10.0.0.2]"},
		{name: "ReViews.DEFAULT.", typ: dnsmessage.TypeA, want: "[10.0.0.1 10.0.0.2]"},
		{name: "reviews.default.", typ: dnsmessage.TypeAAAA, edns: 1232, want: "[fd00::1]", flags: "edns"},
		{name: "reviews.default.", typ: dnsmessage.TypeALL, want: "[10.0.0.1 10.0.0.2 fd00::1]"},
		{name: "reviews.default.", typ: 65, want: "[]"},
		{name: "empty.default.", typ: dnsmessage.TypeA, want: "[]"},
		{name: "reviews.default.", typ: dnsmessage.TypeTXT, want: pass},
		{name: "example.com.", typ: dnsmessage.TypeA, edns: 4096, want: pass},
		{name: ".", typ: dnsmessage.TypeA, want: pass},
		{name: "reviews.default.", typ: dnsmessage.TypeA, want: pass, more: func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }},
		{name: "reviews.default.", typ: dnsmessage.TypeA, want: pass, more: func(m *dnsmessage.Message) { m.OpCode = 5 }},
		{name: "reviews.default.", typ: dnsmessage.TypeA, want: pass, more: func(m *dnsmessage.Message) { m.Response = true }},
		{name: "reviews.default.", typ: dnsmessage.TypeA, edns: 512, want: pass, more: func(m *dnsmessage.Message) { m.Additionals[0].Header.TTL |= 1 << 16 }},
		{name: "reviews.default.", typ: dnsmessage.TypeA, want: pass, more: func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }},
		{name: "many.default.", typ: dnsmessage.TypeA, want: fmt.Sprint(many()[:30]), flags: "cut"},                 // 12+18+29*16 = 494
		{name: "many.default.", typ: dnsmessage.TypeA, edns: 800, want: fmt.Sprint(many()[:47]), flags: "cut edns"}, // 12+18+11+47*16 = 793
		{name: "many.default.", typ: dnsmessage.TypeA, edns: 4096, want: fmt.Sprint(many()), flags: "edns"},
		{name: "many.default.", typ: dnsmessage.TypeA, edns: 100, want: fmt.Sprint(many()[:29]), flags: "cut edns"},
	} {
		t.Run(fmt.Sprintf("%s %s %d", c.name, c.typ, c.edns), func(t *testing.T) {
			var more []func(*dnsmessage.Message)
			if c.more != nil {
				more = append(more, c.more)
			}
			answer := Answer(query(t, c.name, c.typ, c.edns, more...), testZone, 0, 0)
			if (answer == nil) != (c.want == pass) {
				t.Fatalf("answer %x, want %s", answer, c.want)
			}
			if answer == nil {
				return
			}
			if size := max(c.edns, minSize); len(answer) > size {
				t.Errorf("%d bytes for a client that takes %d", len(answer), size)
			}
			var m dnsmessage.Message
			if err := m.Unpack(answer); err != nil {
				t.Fatal(err)
			}
			if m.ID != 4711 || !m.Response || !m.RecursionDesired || m.RCode != dnsmessage.RCodeSuccess || m.Questions[0].Name.String() != c.name {
				t.Errorf("header %+v of %v", m.Header, m.Questions)
			}
			got := []netip.Addr{}
			for _, r := range m.Answers {
				if r.Header.TTL != ttl || r.Header.Name.String() != c.name {
					t.Errorf("record %v", r.Header)
				}
				switch body := r.Body.(type) {
				case *dnsmessage.AResource:
					got = append(got, netip.AddrFrom4(body.A))
				case *dnsmessage.AAAAResource:
					got = append(got, netip.AddrFrom16(body.AAAA))
				}
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("addresses %v, want %s", got, c.want)
			}
			flags := []byte{}
			if m.Truncated {
				flags = append(flags, "cut "...)
			}
			if len(m.Additionals) > 0 {
				flags = append(flags, "edns"...)
			}
			if got := string(bytes.TrimSpace(flags)); got != c.flags {
				t.Errorf("flags %q, want %q", got, c.flags)
			}
		})
	}
}

// FuzzAnswer wants an answer that can be read, to the question that was asked, and no larger than it may be.
func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "reviews.default.", dnsmessage.TypeA, 0))
	f.Add(query(f, "many.default.", dnsmessage.TypeALL, 700))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, asked []byte) {
		before := slices.Clone(asked)
		answer := Answer(asked, testZone, 0, 0)
		if !bytes.Equal(asked, before) {
			t.Fatal("the query was changed")
		}
		if answer == nil {
			return
		}
		var q, a dnsmessage.Message
		if err := a.Unpack(answer); err != nil {
			t.Fatalf("%x: %v", answer, err)
		}
		if err := q.Unpack(asked); err != nil {
			return // its answer is all the same to the question before the garbage
		}
		if a.ID != q.ID || len(a.Questions) != 1 || a.Questions[0] != q.Questions[0] {
			t.Errorf("answer %+v to %+v", a, q)
		}
	})
}

// serving runs a Server beside a resolver that answers every query with itself and "!", or with nothing.
func serving(t *testing.T, silent bool) (*Server, string) {
	t.Helper()
	bind := func() (*net.UDPConn, *net.TCPListener) {
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Addr().(*net.TCPAddr).Port})
		if err != nil {
			t.Fatal(err)
		}
		return udp, tcp
	}
	udp, tcp := bind()
	go func() {
		buf := make([]byte, maxMessage)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if !silent {
				_, _ = udp.WriteTo(echo(buf[:n]), from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					m, err := receive(c)
					if err != nil || silent {
						return
					}
					_ = send(c, echo(m))
				}
			}()
		}
	}()
	s := New(Config{Names: func() Names { return testZone }, Resolver: tcp.Addr().String()})
	ours, oursTCP := bind()
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ours, oursTCP) }()
	t.Cleanup(func() {
		if err := errors.Join(ours.Close(), oursTCP.Close()); err != nil {
			t.Error(err)
		}
		<-done
		_, _ = udp.Close(), tcp.Close()
	})
	return s, oursTCP.Addr().String()
}

// echo is what the resolver answers: it does not know reviews.
func echo(query []byte) []byte {
	answer := append(slices.Clone(query), '!')
	if bytes.Contains(query, []byte("\x07reviews\x00")) {
		answer[3] = byte(dnsmessage.RCodeNameError)
	}
	return answer
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServer(t *testing.T) {
	s, at := serving(t, false)
	own, other := query(t, "reviews.default.", dnsmessage.TypeA, 0), query(t, "example.com.", dnsmessage.TypeMX, 4096)
	large := bytes.Repeat([]byte{0xff}, 9000) // no query at all
	fallback, known := query(t, "reviews.", dnsmessage.TypeA, 0), query(t, "known.", dnsmessage.TypeA, 0)
	for i, q := range [][]byte{own, other, large, fallback, known} {
		want := append(slices.Clone(q), '!')
		switch i {
		case 0:
			want = Answer(q, testZone, 0, 0)
		case 3:
			var m dnsmessage.Message
			want = answer(q, testZone, 0, 0, Fallback)
			if err := m.Unpack(want); err != nil || len(m.Answers) != 1 {
				t.Fatal(m, err)
			}
		}
		udp := dial(t, "udp", at)
		if _, err := udp.Write(q); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, maxMessage)
		if n, err := udp.Read(buf); err != nil || !sameAnswer(buf[:n], want) {
			t.Errorf("query %d over UDP: %x, %v, want %x", i, buf[:n], err, want)
		}
		tcp := dial(t, "tcp", at)
		for range 2 {
			if err := send(tcp, q); err != nil {
				t.Fatal(err)
			}
			if got, err := receive(tcp); err != nil || !sameAnswer(got, want) {
				t.Errorf("query %d over TCP: %x, %v, want %x", i, got, err, want)
			}
		}
	}
	tcp := dial(t, "tcp", at)
	if err := send(tcp, query(t, "many.default.", dnsmessage.TypeA, 0)); err != nil {
		t.Fatal(err)
	}
	got, err := receive(tcp)
	var m dnsmessage.Message
	if err != nil || m.Unpack(got) != nil || m.Truncated || len(m.Answers) != 200 {
		t.Errorf("over TCP %d of 200 addresses, truncated %v, %v", len(m.Answers), m.Truncated, err)
	}
	if s.Answered.Load() == 0 || s.Passed.Load() == 0 || s.Dropped.Load() != 0 {
		t.Errorf("counters %d %d %d", s.Answered.Load(), s.Passed.Load(), s.Dropped.Load())
	}
}

// sameAnswer compares messages, save for the order of the addresses.
func sameAnswer(got, want []byte) bool {
	a, b := slices.Clone(got), slices.Clone(want)
	slices.Sort(a)
	slices.Sort(b)
	return bytes.Equal(a, b)
}

// TestServerBeyondItsRoom fills the room with queries that the resolver does not answer: names of the mesh resolve on.
func TestServerBeyondItsRoom(t *testing.T) {
	s, at := serving(t, true)
	for range atOnce {
		if !s.enter() {
			t.Fatal("no room")
		}
	}
	defer func() {
		for range atOnce {
			s.leave()
		}
	}()
	c := dial(t, "udp", at)
	for _, name := range []string{"example.com.", "reviews.default."} {
		if _, err := c.Write(query(t, name, dnsmessage.TypeA, 0)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, minSize)
	if n, err := c.Read(buf); err != nil || !sameAnswer(buf[:n], Answer(query(t, "reviews.default.", dnsmessage.TypeA, 0), testZone, 0, 0)) {
		t.Errorf("%x, %v", buf[:n], err)
	}
	if s.Dropped.Load() != 1 {
		t.Errorf("%d dropped, want 1", s.Dropped.Load())
	}
}
