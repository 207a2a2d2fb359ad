package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/admin"
	"github.com/composure-mesh/composure/proxy/control"
	"github.com/composure-mesh/composure/proxy/dns"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/mixer"
	"github.com/composure-mesh/composure/proxy/quota"
	"github.com/composure-mesh/composure/proxy/resolve"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/tcp"
	"github.com/composure-mesh/composure/proxy/telemetry"
	"github.com/composure-mesh/composure/proxy/tlsconf"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Conditions of readiness.
const (
	needListeners   = "listeners"
	needSelfTest    = "self-test"
	needCertificate = "certificate"
	needSnapshot    = "snapshot"
	needSecurity    = "security"
	needUsage       = "usage"
	notDraining     = "draining"
)

// Server is one proxy.
type Server struct {
	cfg         Config
	log         *slog.Logger
	trustDomain spiffeid.TrustDomain
	instance    string
	started     time.Time

	ready     *admin.Readiness
	applying  sync.Mutex // one Apply at a time
	table     atomic.Pointer[table.Table]
	parts     parts // guarded by applying
	snapshot  atomic.Pointer[snapshot.Snapshot]
	applied   chan struct{} // closed when the first complete snapshot is in force
	listening chan struct{} // closed when the first listeners are held
	recorder  *telemetry.Recorder
	collector *mixer.Collector
	resolver  *resolve.Resolver
	accessLog *telemetry.AccessLog // nil for none
	meshTLS   *tls.Config          // of inbound mutual TLS; nil without an identity
	transport *upstream.Transport
	engine    *forward.Engine
	tcp       *tcp.Handler
	dns       *dns.Server // nil without Capture.DNS
	// certificates are those of TLS at the mesh's edges.
	certificates *tlsconf.Store
	control      *control.Client // nil for a proxy that stands alone

	connections *connections
	gateway     *gateway // nil for a sidecar
	stats       counters
	servers     []httpServer
	draining    atomic.Bool
}

type httpServer struct {
	server   *http.Server
	listener net.Listener
}

// New builds a proxy and binds its own ports.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, trustDomain: td, instance: rand.Text(), started: time.Now(),
		ready: admin.NewReadiness(conditions(&cfg)), applied: make(chan struct{}), listening: make(chan struct{}),
		connections: newConnections(cfg.Settings.MaxConnections),
	}
	if err := s.build(); err != nil {
		return nil, err
	}
	if err := s.bind(); err != nil {
		s.closeListeners()
		return nil, err
	}
	return s, nil
}

func conditions(cfg *Config) map[string]string {
	c := map[string]string{needSnapshot: "none yet: pilot has not sent one"}
	if cfg.Control != nil {
		c[needSecurity] = "none yet: citadel has not sent its part of the snapshot"
		c[needUsage] = "none yet: mixer has not sent its part of the snapshot"
	}
	if cfg.Identity != nil {
		c[needCertificate] = "none yet: citadel has not issued one"
	}
	if cfg.Capture != nil {
		c[needListeners] = "not acquired yet"
		if cfg.Capture.SelfTest.IsValid() {
			c[needSelfTest] = "not passed yet"
		}
	}
	return c
}

// build makes the parts, bottom up.
func (s *Server) build() error {
	cfg := &s.cfg
	empty, err := table.Build(&snapshot.Snapshot{}, nil)
	if err != nil {
		return fmt.Errorf("empty table: %w", err)
	}
	s.table.Store(empty)
	if cfg.AccessLog != nil && cfg.AccessLogFormat != telemetry.FormatOff {
		s.accessLog = telemetry.NewAccessLog(cfg.AccessLog, cfg.AccessLogFormat)
	}
	s.recorder = telemetry.New(telemetry.Config{Cluster: cfg.Mesh, Instance: s.instance, AccessLog: s.accessLog})
	s.collector = mixer.NewCollector()
	s.resolver = resolve.New(net.DefaultResolver.LookupNetIP, s.log)
	var source identity.Source // must be a nil interface where there is none
	if cfg.Identity != nil {
		source = cfg.Identity
		s.meshTLS = identity.ServerTLS(source, identity.MemberOf(s.trustDomain), mesh.ALPNHTTP1, mesh.ALPNHTTP2, mesh.ALPNTCP)
	}
	s.certificates = tlsconf.New(source, s.trustDomain, s.log)
	set := cfg.Settings
	limits := http1.Limits{HeadBytes: set.HeaderSize, Fields: set.HeaderCount, TargetBytes: set.TargetSize}
	s.transport = upstream.New(upstream.Config{
		Identity: source, ClientTLS: s.certificates.Client, Dial: s.dial, ConnectTimeout: set.ConnectTimeout, IdleTimeout: set.UpstreamIdleTimeout, Limits: limits,
	})
	s.engine = forward.New(forward.Config{
		Table: s.table.Load, Transport: s.transport, Recorder: s.recorder, Collector: s.collector, Log: s.log, Limits: limits,
		Timeouts: forward.Timeouts{First: set.FirstByteTimeout, Header: set.HeaderTimeout, Idle: set.IdleTimeout, StreamIdle: set.StreamIdleTimeout},
		HTTP2:    http2.Config{Streams: set.MaxStreams},
	})
	s.tcp = tcp.New(tcp.Config{
		Dial: s.dialSession, Recorder: sessions{s.recorder, s}, IdleTimeout: set.TCPIdleTimeout,
	})
	if cfg.Capture != nil && cfg.Capture.DNS != nil {
		s.dns = dns.New(dns.Config{Names: func() dns.Names { return s.table.Load() }, Resolver: cfg.Capture.Resolver})
	}
	if cfg.Control == nil {
		return s.Apply(cfg.Snapshot)
	}
	s.control, err = control.New(control.Config{
		PilotSocket: cfg.Control.PilotSocket, CitadelSocket: cfg.Control.CitadelSocket, MixerSocket: cfg.Control.MixerSocket,
		StateDir: cfg.Control.StateDir, TrustDomain: cfg.TrustDomain, Identity: cfg.Identity,
		Apply: s.Apply, ApplySecurity: s.applySecurity, ApplyUsage: s.applyUsage,
		MissedKeys: func() []string { return s.table.Load().Tokens().MissedKeys() },
		Report:     s.report, Entries: s.collector, Build: cfg.Build, Log: s.log,
	})
	if err != nil {
		return err
	}
	if _, err := s.control.Load(); err != nil {
		s.log.Warn("what was kept of the last run is of no use; waiting for the planes", "error", err)
	}
	return nil
}

// The proxy's own ports are for a health check, a scraper or two and people.
const (
	ownConnections = 32 // a port, from loopback, and as many from elsewhere
	answerTime     = 30 * time.Second
)

// bind opens the proxy's own ports, and a gateway's.
func (s *Server) bind() error {
	ready := http.NewServeMux()
	ready.Handle("GET /healthz/ready", s.ready)
	for _, own := range []struct {
		addr    string
		handler http.Handler
		write   time.Duration // for an answer, and the wait for it
	}{
		{s.cfg.AdminAddr, admin.Handler(s.adminConfig()), admin.MaxWait + answerTime},
		{s.cfg.ReadyAddr, ready, admin.MaxWait + answerTime},
		{s.cfg.MetricsAddr, admin.Metrics(func() *report.Report { r, _ := s.recorder.Report(); return r }), answerTime},
	} {
		ln, err := listen.Bind(context.Background(), own.addr)
		if err != nil {
			return fmt.Errorf("the proxy's own ports: %w", err)
		}
		s.servers = append(s.servers, httpServer{
			&http.Server{Handler: own.handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: own.write, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10},
			listen.Limit(ln, ownConnections),
		})
	}
	if s.cfg.Capture == nil {
		s.gateway = &gateway{server: s, listeners: map[uint16]*net.TCPListener{}, refused: map[uint16]bool{}}
		return s.gateway.bind(s.cfg.GatewayPorts)
	}
	return nil
}

func (s *Server) closeListeners() {
	for _, h := range s.servers {
		_ = h.listener.Close() // nothing was served on it
	}
	if s.gateway != nil {
		s.gateway.close()
	}
}

// parts are what the planes have sent: nil before their first.
type parts struct {
	routing  *snapshot.Snapshot
	security *snapshot.Security
	usage    *snapshot.Usage
}

// Apply puts pilot's part of the snapshot in force, or says why not. In the snapshot of a proxy that stands alone the
// other planes' parts stand too.
func (s *Server) Apply(snap *snapshot.Snapshot) error {
	return s.change(func(p *parts) { p.routing = snap })
}

func (s *Server) applySecurity(part *snapshot.Security) error {
	return s.change(func(p *parts) { p.security = part })
}

func (s *Server) applyUsage(part *snapshot.Usage) error {
	return s.change(func(p *parts) { p.usage = part })
}

// change builds a table of the parts with one of them changed, and takes it into force once the parts are complete: a
// proxy that knows its routes but not yet who may call serves nobody.
func (s *Server) change(part func(*parts)) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := s.parts
	part(&next)
	snap := &snapshot.Snapshot{}
	if next.routing != nil {
		*snap = *next.routing
	}
	if s.control != nil {
		snap.Security, snap.Usage = next.security, next.usage
	}
	if s.cfg.Identity == nil {
		snap = plain(snap)
	}
	snap = s.resolver.Fill(snap)
	t, err := table.Build(snap, s.table.Load())
	if err != nil {
		return err
	}
	s.parts = next
	if next.routing != nil && (s.control == nil || next.security != nil && next.usage != nil) {
		s.recorder.Apply(snap)
		s.collector.Apply(t.Rules())
		s.certificates.Apply(snap)
		s.table.Store(t)
		s.stats.plainRefused.Add(s.connections.endPlain(t.TakesPlainText))
		if s.snapshot.Swap(snap) == nil {
			close(s.applied)
		}
		if s.gateway != nil {
			s.gateway.apply(snap)
		}
	}
	for need, has := range map[string]bool{
		needSnapshot: next.routing != nil, needSecurity: next.security != nil, needUsage: next.usage != nil,
	} {
		if has {
			s.ready.Set(need, "")
		}
	}
	return nil
}

// plain is a snapshot for a proxy that can't prove who it is: every workload is dialled in plain text.
func plain(snap *snapshot.Snapshot) *snapshot.Snapshot {
	out := *snap
	out.Workloads = append([]snapshot.Workload(nil), snap.Workloads...)
	for i := range out.Workloads {
		out.Workloads[i].Identity = ""
	}
	out.Proxy.Identity = ""
	return &out
}

// Run serves until ctx ends, then drains.
func (s *Server) Run(ctx context.Context) error {
	defer s.closeListeners()
	// The proxy's parts outlive ctx: they are needed until the last connection is done.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	accept, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()

	var accepting lifecycle.Task
	if s.gateway != nil {
		accepting = s.gateway.run
	} else {
		accepting = s.capture
	}
	tasks := []lifecycle.Task{
		func(work context.Context) error {
			context.AfterFunc(work, stopAccepting) // some other part has failed
			err := accepting(accept)
			if ctx.Err() == nil {
				return err
			}
			s.drain(work)
			stop()
			return nil
		},
	}
	tasks = append(tasks, s.certificates.Run)
	for _, h := range s.servers {
		tasks = append(tasks, func(work context.Context) error { return httpx.Serve(work, h.server, h.listener) })
	}
	if s.accessLog != nil {
		tasks = append(tasks, s.accessLog.Run)
	}
	if s.cfg.Identity != nil {
		tasks = append(tasks, s.cfg.Identity.Run, s.watchCertificate)
	}
	tasks = append(tasks, func(ctx context.Context) error {
		return s.resolver.Run(ctx, func() {
			if err := s.change(func(*parts) {}); err != nil {
				s.log.Warn("the addresses that were found are not used", "error", err)
			}
		})
	})
	if s.control != nil {
		tasks = append(tasks, s.control.Run, func(ctx context.Context) error {
			return s.table.Load().Quotas().Leases().Run(ctx, s.control.Lease, s.log)
		}, func(ctx context.Context) error {
			inForce := func() *quota.Set { return s.table.Load().Quotas() }
			return inForce().Leases().Follow(ctx, inForce, s.control.Counts)
		})
	}
	if s.dns != nil {
		tasks = append(tasks, func(context.Context) error { return s.serveDNS(accept) })
	}
	if s.cfg.Capture != nil && s.cfg.Capture.SelfTest.IsValid() {
		tasks = append(tasks, s.runSelfTest)
	}
	s.log.Info("started", "mode", s.mode(), "version", s.cfg.Build, "admin", s.servers[0].listener.Addr(),
		"ready", s.servers[1].listener.Addr(), "metrics", s.servers[2].listener.Addr())
	err := lifecycle.Run(work, tasks...)
	s.connections.closeAll()
	s.log.Info("stopped")
	return err
}

// watchCertificate keeps readiness true to the certificate, and ends what outlives a peer's. The clock is looked at every second, since timers stand
// still while a machine sleeps.
func (s *Server) watchCertificate(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	first := s.cfg.Identity.Ready()
	for {
		s.ready.Set(needCertificate, s.cfg.Identity.Reason())
		if n := s.connections.endUnproven(time.Now()); n > 0 {
			s.stats.unproven.Add(n)
		}
		select {
		case <-first:
			first = nil
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Server) mode() string {
	switch {
	case s.gateway != nil:
		return "gateway"
	case s.control == nil:
		return "standalone"
	}
	return "sidecar"
}

func (s *Server) adminConfig() admin.Config {
	return admin.Config{
		Info: s.info, Snapshot: s.snapshot.Load, Clusters: s.clusters, Stats: s.allStats, Level: s.cfg.Level, Readiness: s.ready,
		Certs: func() any {
			certs := certificates{Servers: s.certificates.Status()}
			if s.cfg.Identity != nil {
				status := s.cfg.Identity.Status()
				certs.Status = &status
			}
			return certs
		},
	}
}

// certificates is the answer of /certs: the identity, and what a gateway shows to clients.
type certificates struct {
	*identity.Status
	Servers []tlsconf.Status `json:"servers,omitempty"`
}

func (s *Server) info() admin.Info {
	i := admin.Info{
		Version: s.cfg.Build, Mode: s.mode(), Instance: s.instance, Uptime: time.Since(s.started).Seconds(), Draining: s.draining.Load(),
	}
	if snap := s.snapshot.Load(); snap != nil {
		i.Workload, i.Snapshot = snap.Proxy.Name, snap.Version
	}
	return i
}

func (s *Server) clusters() []admin.Cluster {
	out := []admin.Cluster{}
	snap, t := s.snapshot.Load(), s.table.Load()
	if snap == nil {
		return out
	}
	add := func(service, subset string, port uint16) {
		c := t.ClusterAt(service, subset, port) // port 0 is none's
		if c == nil {
			return
		}
		entry := admin.Cluster{Service: service, Subset: subset, Port: port, Endpoints: []admin.Endpoint{}}
		for _, e := range c.Endpoints {
			ep := admin.Endpoint{Address: e.Addr.String(), Identity: e.Identity, Active: e.Active()}
			if e.Workload != nil {
				ep.Workload = e.Workload.Name
			}
			entry.Endpoints = append(entry.Endpoints, ep)
		}
		out = append(out, entry)
	}
	for i := range snap.Services {
		svc := &snap.Services[i]
		add(svc.Host, "", 0)
		for _, p := range svc.PortPolicies {
			add(svc.Host, "", p.Port)
		}
		for _, sub := range svc.Subsets {
			add(svc.Host, sub.Name, 0)
			for _, p := range sub.PortPolicies {
				add(svc.Host, sub.Name, p.Port)
			}
		}
	}
	return out
}

func (s *Server) allStats() map[string]uint64 {
	out := s.stats.values()
	out["connections.active"] = uint64(s.connections.count()) //nolint:gosec // a count
	out["tcp.sessions_active"] = uint64(s.tcp.Active())       //nolint:gosec // a count
	out["telemetry.series_dropped"] = s.recorder.Dropped()
	out["mixer.series_dropped"], out["mixer.evaluations_failed"], out["mixer.entries_dropped"] = s.collector.Stats()
	refused, shadowed := s.table.Load().Quotas().Stats()
	for name, n := range refused {
		out["ratelimit."+name+".refused"], out["ratelimit."+name+".shadowed"] = n, shadowed[name]
	}
	if s.dns != nil {
		out["dns.answered"], out["dns.passed"], out["dns.dropped"] = s.dns.Answered.Load(), s.dns.Passed.Load(), s.dns.Dropped.Load()
	}
	if s.accessLog != nil {
		out["access_log.lines_dropped"] = s.accessLog.Dropped()
	}
	if s.control != nil {
		maps.Copy(out, s.control.Stats())
	}
	if access := s.table.Load().Access(); access != nil {
		maps.Copy(out, access.Stats())
	}
	return out
}

var _ exchange.Recorder = (*telemetry.Recorder)(nil)
