package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// testCase is one comparison or a few that belong together.
type testCase struct {
	name, about string
	run         func(*bench) ([]row, error)
	brief       bool // fewer and shorter rounds: it varies another case
}

// cases in the order in which they run.
var cases = []testCase{
	{"http", "a plaintext hop, HTTP/1.1, 1 KB answers, keep-alive, 64 connections, beside nginx and haproxy", httpHop, false},
	{"mtls", "two hops with mutual TLS 1.3 between and 10 access rules, 64 connections, beside a pair of nginx", mtlsPair, false},
	{"mtls-new", "the same with a new client connection for every request", mtlsNew, false},
	{"handshake", "connections of bytes with 64 to and fro, each with mutual TLS of its own, beside two pairs of nginx", handshakes, false},
	{"h2", "a hop of HTTP/2, 8 connections of 16 streams, 1 KB answers, beside nginx grpc_pass", h2Hop, false},
	{"grpc-unary", "gRPC calls of 100 bytes, 8 connections of 16 streams, beside nginx grpc_pass", grpcUnary, false},
	{"grpc-stream", "gRPC messages of 100 bytes to and fro on 64 streams, beside nginx grpc_pass", grpcStream, false},
	{"tcp", "bytes from server to client on 4 connections, beside haproxy mode tcp with splice", tcpStream, false},
	{"tcp-connect", "TCP connections with 64 bytes to and fro, beside haproxy mode tcp", tcpConnect, false},
	{"download-0", "answers without a body, beside nginx", bodyCase(0, false), true},
	{"download-100", "answers of 100 B, beside nginx", bodyCase(100, false), true},
	{"download-10k", "answers of 10 KB, beside nginx", bodyCase(10_000, false), true},
	{"download-1m", "answers of 1 MB, beside nginx", bodyCase(1_000_000, false), true},
	{"download-100m", "answers of 100 MB, beside nginx", bodyCase(100_000_000, false), true},
	{"upload-100", "requests of 100 B, beside nginx", bodyCase(100, true), true},
	{"upload-10k", "requests of 10 KB, beside nginx", bodyCase(10_000, true), true},
	{"upload-1m", "requests of 1 MB, beside nginx", bodyCase(1_000_000, true), true},
	{"upload-100m", "requests of 100 MB, beside nginx", bodyCase(100_000_000, true), true},
	{"conns-1", "the plaintext hop over 1 connection", connections(1), true},
	{"conns-16", "the plaintext hop over 16 connections", connections(16), true},
	{"conns-1000", "the plaintext hop over 1000 connections", connections(1000), true},
	{"idle", "memory of 10 000 idle client connections, beside nginx and the design's limit", idleConnections, false},
	{"services-1000", "the plaintext hop with 1000 services in the table, beside itself with one", manyServices, true},
	{"routes-1000", "the plaintext hop with 1000 routes before the one that matches, beside itself with one", manyRoutes, true},
	{"access-log", "the plaintext hop with the access log on, beside nginx with its own", accessLog, true},
	{"rules-10", "a plaintext hop to the application whose proxy asks 10 access rules, beside itself without", accessCase(10), true},
	{"rules-100", "the same with 100 rules", accessCase(100), true},
	{"rules-1000", "the same with 1000 rules", accessCase(1000), true},
	{"jwt", "a plaintext hop to the application whose proxy verifies the token of every request, one token of RS256, beside itself without", hotToken, true},
	{"limit-local", "a plaintext hop to the application whose proxy has a local limit of every path, beside itself without", usageCase(plentiful(false)), true},
	{"limit-global", "the same with a global limit while no mixer answers, which is counted locally then", usageCase(plentiful(true)), true},
	{"mixer-rules-10", "a plaintext hop to the application whose proxy asks 10 rules of Mixer's language, beside itself without", usageCase(mixerRules(10)), true},
	{"mixer-rules-100", "the same with 100 rules", usageCase(mixerRules(100)), true},
	{"latency", "two hops with mutual TLS at 1000 requests/s, 16 connections, open loop, beside a pair of nginx", latency, false},
	{"scale-100", "pilot with 1000 services of 5 workloads, 1000 VirtualServices and 100 proxies: a change until the last has it, beside the design's limits", scaleCase(100), true},
	{"scale-1000", "the same with 1000 proxies", scaleCase(1000), true},
	{"scale-3000", "the same with 3000 proxies", scaleCase(3000), true},
	{"scale-apply", "1000 VirtualServices applied one by one to the same mesh", scaleApply, true},
	{"scale-flap", "1000 of its endpoints changed within a second", scaleFlap, true},
	{"inject", "inject of a compose project of 500 services, beside the design's limit", injectProject, false},
}

// build starts a side.
type build func() (*side, error)

// against starts our side and its opponents and compares them. Where another build of the proxy was given, that is the
// only opponent.
func (b *bench) against(l load, ours build, theirs ...build) ([]row, error) {
	sides, err := b.sides(ours, theirs...)
	if err != nil {
		return nil, err
	}
	return b.compare(l, sides...)
}

func (b *bench) sides(ours build, theirs ...build) ([]*side, error) {
	if b.other != "" {
		theirs = []build{func() (*side, error) {
			mine := b.proxy
			b.proxy = b.other
			s, err := ours()
			b.proxy = mine
			if err == nil {
				s.name = "other build"
			}
			return s, err
		}}
	}
	var sides []*side
	for _, start := range append([]build{ours}, theirs...) {
		s, err := start()
		if err != nil {
			return nil, err
		}
		sides = append(sides, s)
	}
	return sides, nil
}

// hop is a plaintext hop of ours, and those of nginx and haproxy, to app.
func (b *bench) hop(app string, o hopOptions) (ours, nginx, haproxy build) {
	return func() (*side, error) { return b.ourSide(app, o) },
		func() (*side, error) { return b.nginxSide(app, o) },
		func() (*side, error) { return b.haproxySide(app, false) }
}

func httpHop(b *bench) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	ours, nginx, haproxy := b.hop(app, hopOptions{})
	return b.against(b.wrk(64), ours, nginx, haproxy)
}

func connections(n int) func(*bench) ([]row, error) {
	return func(b *bench) ([]row, error) { return b.besideNginx(n, hopOptions{}) }
}

func accessLog(b *bench) ([]row, error) { return b.besideNginx(64, hopOptions{log: true}) }

func (b *bench) besideNginx(n int, o hopOptions) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	ours, nginx, _ := b.hop(app, o)
	return b.against(b.wrk(n), ours, nginx)
}

func mtlsPair(b *bench) ([]row, error) { return b.pairs(b.wrk(64)) }

func mtlsNew(b *bench) ([]row, error) { return b.pairs(b.wrk(64, "Connection: close")) }

func (b *bench) pairs(l load) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	return b.against(l, func() (*side, error) { return b.ourPair(app) }, func() (*side, error) { return b.nginxPair(app) })
}

func handshakes(b *bench) ([]row, error) {
	app, err := b.ownBackend("echo")
	if err != nil {
		return nil, err
	}
	return b.against(b.generated("connection", loadParams{Kind: "connect", Connections: 16}),
		func() (*side, error) { return b.ourTCPPair(app) },
		func() (*side, error) { return b.nginxStreamPair(app, false) },
		func() (*side, error) { return b.nginxStreamPair(app, true) })
}

func h2Hop(b *bench) ([]row, error) {
	app, err := b.smallBackend(true)
	if err != nil {
		return nil, err
	}
	return b.grpcHop(app, b.h2load())
}

func grpcUnary(b *bench) ([]row, error) {
	app, err := b.ownBackend("grpc")
	if err != nil {
		return nil, err
	}
	data, err := b.file("message", grpcMessage(100))
	if err != nil {
		return nil, err
	}
	return b.grpcHop(app, b.h2load("-d", data, "-H", "content-type: application/grpc", "-H", "te: trailers"))
}

func grpcStream(b *bench) ([]row, error) {
	app, err := b.ownBackend("grpc")
	if err != nil {
		return nil, err
	}
	return b.grpcHop(app, b.generated("message", loadParams{Kind: "grpc", Connections: 64}))
}

// grpcHop compares hops of HTTP/2 to app.
func (b *bench) grpcHop(app string, l load) ([]row, error) {
	return b.against(l, func() (*side, error) { return b.ourSide(app, hopOptions{}, speaksHTTP2) }, func() (*side, error) { return b.nginxGRPC(app) })
}

func tcpStream(b *bench) ([]row, error) {
	return b.tcp("source", b.generated("mb", loadParams{Kind: "stream", Connections: 4}))
}

func tcpConnect(b *bench) ([]row, error) {
	return b.tcp("echo", b.generated("connection", loadParams{Kind: "connect", Connections: 16}))
}

func (b *bench) tcp(backend string, l load) ([]row, error) {
	app, err := b.ownBackend(backend)
	if err != nil {
		return nil, err
	}
	return b.against(l, func() (*side, error) { return b.ourTCP(app) }, func() (*side, error) { return b.haproxySide(app, true) })
}

func bodyCase(size int64, upload bool) func(*bench) ([]row, error) {
	return func(b *bench) ([]row, error) {
		app, err := b.ownBackend("http")
		if err != nil {
			return nil, err
		}
		n := 16
		if size > 10<<20 {
			n = 2
		}
		ours, nginx, _ := b.hop(app, hopOptions{stream: true})
		return b.against(b.generated("request", loadParams{Kind: "bodies", Connections: n, Bytes: size, Upload: upload}), ours, nginx)
	}
}

// idleConnections opens connections, has one request on each, and looks at what they take while nothing moves.
func idleConnections(b *bench) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	ours, nginx, _ := b.hop(app, hopOptions{})
	sides, err := b.sides(ours, nginx)
	if err != nil {
		return nil, err
	}
	// Our proxy takes half as many as it has descriptors, since each connection needs another for its upstream.
	n := min(10_000, b.files/2-500)
	turns := make([][]sample, len(sides))
	for i, s := range sides {
		before, err := s.rss()
		if err != nil {
			return nil, err
		}
		conns, err := openIdle(b.ctx, s.addr, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		time.Sleep(2 * time.Second) // what was freed may be given back
		after, err := s.rss()
		closeAll(conns)
		if err != nil {
			return nil, err
		}
		turns[i] = []sample{{"rss_mb": after, "kb_per_idle_connection": (after - before) * 1024 / float64(n)}}
	}
	m := turns[0][0]
	return append(rows(sides, turns), limit("rss_mb_at_10000", m["rss_mb"]+m["kb_per_idle_connection"]*float64(10_000-n)/1024, 150)), nil
}

func manyServices(b *bench) ([]row, error) {
	return b.beside("one service", func(s *snapshot.Snapshot) {
		web, host := s.Services[0], s.VirtualHosts[0]
		for i := range 999 {
			name := fmt.Sprintf("service-%03d", i)
			svc, vh := web, host
			svc.Host, svc.Name = name+".default.svc.cluster.local", name
			vh.Name, vh.Service, vh.Domains = svc.Host, svc.Host, []string{name, svc.Host}
			s.Services, s.VirtualHosts = append(s.Services, svc), append(s.VirtualHosts, vh)
		}
	})
}

func manyRoutes(b *bench) ([]row, error) {
	return b.beside("two routes", func(s *snapshot.Snapshot) {
		vh := &s.VirtualHosts[0]
		last := vh.Routes[len(vh.Routes)-1]
		var routes []snapshot.Route
		for i := range 1000 {
			r := last
			r.Matches = []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: fmt.Sprintf("/api/v1/items-%03d", i)}}}
			routes = append(routes, r)
		}
		routes = append(routes, last)
		vh.Routes = routes
	})
}

// beside compares a plaintext hop of ours with a changed snapshot to one with the plain one.
func (b *bench) beside(opponent string, change func(*snapshot.Snapshot)) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	return b.against(b.wrk(64), func() (*side, error) { return b.ourSide(app, hopOptions{}, change) }, func() (*side, error) {
		s, err := b.ourSide(app, hopOptions{})
		if err == nil {
			s.name = "ours, " + opponent
		}
		return s, err
	})
}

// latency compares what each pair adds to the latency without any proxy.
func latency(b *bench) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	sides, err := b.sides(func() (*side, error) { return b.ourPair(app) }, func() (*side, error) { return b.nginxPair(app) })
	if err != nil {
		return nil, err
	}
	sides = append(sides, &side{name: "no proxy", addr: app})
	turns, err := b.turns(b.generated("request", loadParams{Kind: "open", Connections: 16, Rate: 1000}), sides)
	if err != nil {
		return nil, err
	}
	for _, s := range turns[:2] {
		for round, m := range s {
			for _, q := range []string{"p50_ms", "p90_ms", "p99_ms", "p99.9_ms"} {
				m["added_"+q] = m[q] - turns[2][round][q]
			}
		}
	}
	out := rows(sides[:2], turns[:2])
	var memory, cpu, added []float64
	for _, m := range turns[0] {
		memory, cpu, added = append(memory, m["rss_mb"]/2), append(cpu, m["cpu_us_per_request"]/2/1000), append(added, m["added_p99_ms"])
	}
	return append(out,
		limit("rss_mb_of_one_sidecar", median(memory), 20),
		limit("vcpu_of_one_sidecar", median(cpu), 0.05),
		limit("added_p99_ms", median(added), 1),
	), nil
}

var injectSeconds = regexp.MustCompile(`BenchmarkInject\S*\s.*\s([\d.]+) cpu-s/op`)

// injectProject runs the benchmark of package compose.
func injectProject(b *bench) ([]row, error) {
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkInject$", "-benchtime", "3x", "./compose").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go test ./compose, from the repository's root: %w: %s", err, out)
	}
	m := injectSeconds.FindSubmatch(out)
	if m == nil {
		return nil, errors.New("go test ./compose: no BenchmarkInject in its output")
	}
	return []row{limit("cpu_seconds", parse(m[1]), 1)}, nil
}
