package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/settings"
	"github.com/composure-mesh/composure/proxy"
	"github.com/composure-mesh/composure/proxy/control"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/telemetry"
)

const usage = `usage: proxy                          run beside a workload, or as a gateway, as its environment says
       proxy --snapshot FILE [flags]  run alone by a snapshot in a file, without planes (docs/standalone.md)
       proxy ready [--wait 25s]       tell by the exit status whether the proxy here is ready

Environment:
  COMPOSURE_MESH           name of the mesh
  COMPOSURE_TRUST_DOMAIN   default ` + mesh.DefaultTrustDomain + `
  COMPOSURE_LOG_LEVEL      debug, info, warn or error; default info
  COMPOSURE_ACCESS_LOG     text, json or off; default text
  COMPOSURE_GATEWAY_PORTS  comma-separated ports to listen on; set means gateway
  COMPOSURE_DRAIN          and one for each other flag with a default that stands below: COMPOSURE_HEADER_SIZE, …

Flags:
`

// run is the proxy. Its own logger goes by a level that the admin port can change.
func run(ctx context.Context, _ *slog.Logger, args []string) error {
	level := component.LevelFromEnv()
	cfg := proxy.Config{
		Mesh: os.Getenv("COMPOSURE_MESH"), TrustDomain: cmp.Or(os.Getenv("COMPOSURE_TRUST_DOMAIN"), mesh.DefaultTrustDomain),
		Build: component.Version, Log: component.NewLogger(os.Stderr, "proxy", level), Level: level, AccessLog: os.Stdout,
	}
	if err := environment(&cfg); err != nil {
		return err
	}
	if len(args) > 0 {
		if err := alone(&cfg, args); errors.Is(err, flag.ErrHelp) {
			return nil
		} else if err != nil {
			return err
		}
	} else if err := meshed(&cfg); err != nil {
		return err
	}
	server, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	return server.Run(ctx)
}

// environment reads what all modes share.
func environment(cfg *proxy.Config) error {
	var err error
	if cfg.AccessLogFormat, err = telemetry.ParseFormat(os.Getenv("COMPOSURE_ACCESS_LOG")); err != nil {
		return fmt.Errorf("COMPOSURE_ACCESS_LOG: %w", err)
	}
	cfg.Settings = settings.Default()
	for i := range settings.All {
		s := &settings.All[i]
		if v := os.Getenv(s.Env()); v != "" {
			if err := s.Set(cfg.Settings, v); err != nil {
				return fmt.Errorf("%s: %q: %w", s.Env(), v, err)
			}
		}
	}
	if s := os.Getenv("COMPOSURE_GATEWAY_PORTS"); s != "" {
		for _, p := range strings.Split(s, ",") {
			port, err := strconv.ParseUint(strings.TrimSpace(p), 10, 16)
			if err != nil || port == 0 {
				return fmt.Errorf("COMPOSURE_GATEWAY_PORTS: %q: want ports such as 80,443", s)
			}
			cfg.GatewayPorts = append(cfg.GatewayPorts, uint16(port))
		}
	}
	return nil
}

// meshed is a proxy with planes: a gateway if it was given ports, else a sidecar.
func meshed(cfg *proxy.Config) error {
	role := mesh.RoleProxy
	if len(cfg.GatewayPorts) > 0 {
		role = mesh.RoleGateway
	} else {
		cfg.Capture = &proxy.Capture{
			Acquire:     func(ctx context.Context) (*listen.Held, error) { return listen.Acquire(ctx, mesh.HandoverSocket) },
			OriginalDst: func(c *net.TCPConn, _ bool) (netip.AddrPort, error) { return listen.OriginalDst(c) },
			Own:         new(listen.Network).Has,
			DNS:         func(ctx context.Context) (*listen.HeldDNS, error) { return listen.AcquireDNS(ctx, mesh.DNSSocket) },
			Resolver:    mesh.DockerDNS + ":53",
			SelfTest:    netip.AddrPortFrom(netip.MustParseAddr(mesh.SelfTestIP), 1),
		}
	}
	cfg.AdminAddr = fmt.Sprintf("127.0.0.1:%d", mesh.PortAdmin)
	cfg.ReadyAddr, cfg.MetricsAddr = fmt.Sprintf(":%d", mesh.PortReady), fmt.Sprintf(":%d", mesh.PortMetrics)
	cfg.Control = &proxy.Planes{
		PilotSocket: mesh.Socket(mesh.RolePilot), CitadelSocket: mesh.Socket(mesh.RoleCitadel), MixerSocket: mesh.Socket(mesh.RoleMixer), StateDir: mesh.StateDir,
	}
	agent, err := identity.NewAgent(identity.AgentConfig{
		KeeperSocket: mesh.Socket(mesh.RoleKeeper), CitadelSocket: mesh.Socket(mesh.RoleCitadel), BundleFile: mesh.TrustBundle,
		StateDir: mesh.StateDir, TrustDomain: cfg.TrustDomain, Role: role, Log: cfg.Log,
	})
	if err != nil {
		return err
	}
	cfg.Identity = agent
	return nil
}

// alone is a proxy by a snapshot in a file: a gateway if the file has gateways or it was given ports, else a sidecar.
func alone(cfg *proxy.Config, args []string) error {
	fs := flag.NewFlagSet("proxy", flag.ContinueOnError)
	fs.Usage = func() {
		_, _ = fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	file := fs.String("snapshot", "", "`FILE` with a snapshot in JSON, such as the answer of another proxy's /config_dump")
	outbound := fs.String("outbound", "127.0.0.1:15001", "`LISTEN[=DESTINATION]`: listen for outbound connections, taken as going to DESTINATION where no rule has redirected them; without one, HTTP goes by its Host alone")
	inbound := fs.String("inbound", "", "`LISTEN=DESTINATION`: listen for inbound connections to the application at DESTINATION")
	ca := fs.String("ca", "", "`DIRECTORY` of a certificate authority that this proxy issues its certificate from, and makes first if there is none; proxies that share it speak mutual TLS")
	cert := fs.String("cert", "", "`FILE` with the certificate chain in PEM, in the place of --ca")
	key := fs.String("key", "", "`FILE` with the key of --cert")
	roots := fs.String("roots", "", "`FILE` with the roots to trust, with --cert")
	host := fs.String("host", "127.0.0.1", "`IP` of the proxy's own ports: a second proxy on this host needs another, such as 127.0.0.2")
	fs.StringVar(&cfg.AdminAddr, "admin", "", fmt.Sprintf("`ADDRESS` of the admin port; default port %d of --host", mesh.PortAdmin))
	fs.StringVar(&cfg.ReadyAddr, "ready", "", fmt.Sprintf("`ADDRESS` of the readiness port; default port %d of --host", mesh.PortReady))
	fs.StringVar(&cfg.MetricsAddr, "metrics", "", fmt.Sprintf("`ADDRESS` of the metrics port; default port %d of --host", mesh.PortMetrics))
	for i := range settings.All {
		s := &settings.All[i]
		text := s.Text
		if s.Default != "" {
			text += " (default " + s.Default + ")"
		}
		fs.Func(s.Name, text, func(v string) error { return s.Set(cfg.Settings, v) })
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *file == "" || fs.NArg() > 0 {
		fs.Usage()
		return fmt.Errorf("arguments %q: want --snapshot FILE", args)
	}
	for _, own := range []struct {
		address *string
		port    int
	}{{&cfg.AdminAddr, mesh.PortAdmin}, {&cfg.ReadyAddr, mesh.PortReady}, {&cfg.MetricsAddr, mesh.PortMetrics}} {
		if *own.address == "" {
			*own.address = net.JoinHostPort(*host, strconv.Itoa(own.port))
		}
	}
	snap, err := control.ReadFile(*file)
	if err != nil {
		return err
	}
	cfg.Snapshot = snap
	if err := certificate(cfg, *ca, *cert, *key, *roots); err != nil {
		return err
	}
	for i := range snap.Gateways {
		if port := snap.Gateways[i].Port; !slices.Contains(cfg.GatewayPorts, port) {
			cfg.GatewayPorts = append(cfg.GatewayPorts, port)
		}
	}
	if len(cfg.GatewayPorts) > 0 {
		return nil
	}
	return listeners(cfg, *outbound, *inbound)
}

// certificate is the identity of a proxy that is alone: none, which means plain text, or the snapshot's from a local
// authority, or one from files.
func certificate(cfg *proxy.Config, ca, cert, key, roots string) error {
	self := &cfg.Snapshot.Proxy
	var (
		fixed *identity.Fixed
		err   error
	)
	switch {
	case ca == "" && cert == "" && key == "" && roots == "":
		return nil
	case ca != "" && cert+key+roots != "", ca == "" && (cert == "" || key == "" || roots == ""):
		return errors.New("--ca DIRECTORY, or --cert FILE with --key FILE and --roots FILE")
	case ca != "":
		if self.Identity == "" {
			return errors.New("--ca: the snapshot has no proxy.identity, such as spiffe://" + cfg.TrustDomain + "/ns/default/sa/web")
		}
		fixed, err = identity.FromLocalCA(ca, self.Name, self.Identity)
	default:
		fixed, err = identity.FromFiles(self.Name, cert, key, roots)
	}
	if err != nil {
		return err
	}
	if got := fixed.Current().ID.String(); got != self.Identity {
		return fmt.Errorf("the certificate is that of %s, want the snapshot's proxy.identity %q", got, self.Identity)
	}
	if cfg.Snapshot.TrustDomain != "" {
		cfg.TrustDomain = cfg.Snapshot.TrustDomain
	}
	cfg.Identity = fixed
	return nil
}

// listeners binds those of a sidecar that is alone.
func listeners(cfg *proxy.Config, outbound, inbound string) error {
	out, outDst, err := listener("outbound", outbound)
	if err != nil {
		return err
	}
	in, inDst, err := listener("inbound", inbound)
	if err != nil {
		return err
	}
	if in != nil && !inDst.IsValid() {
		return fmt.Errorf("--inbound %q: want LISTEN=DESTINATION, as nothing else says where the application is", inbound)
	}
	cfg.Capture = &proxy.Capture{
		Acquire: func(context.Context) (*listen.Held, error) { return listen.Own(out, in), nil },
		OriginalDst: func(c *net.TCPConn, isOutbound bool) (netip.AddrPort, error) {
			return destination(c, isOutbound, outDst, inDst), nil
		},
	}
	return nil
}

// listener reads LISTEN[=DESTINATION] and listens; empty is none.
func listener(name, value string) (*net.TCPListener, netip.AddrPort, error) {
	var dst netip.AddrPort
	if value == "" {
		return nil, dst, nil
	}
	at, to, has := strings.Cut(value, "=")
	if has {
		var err error
		if dst, err = netip.ParseAddrPort(to); err != nil {
			return nil, dst, fmt.Errorf("--%s %q: destination: %w", name, value, err)
		}
	}
	ln, err := listen.Bind(context.Background(), at)
	if err != nil {
		return nil, dst, fmt.Errorf("--%s %q: %w", name, value, err)
	}
	return ln, dst, nil
}

// destination is where a connection was going: by a redirection if there was one, else as the flags say. An outbound
// connection of which nothing is known keeps the port, for routes that name none, and an address that nobody dials.
func destination(c *net.TCPConn, outbound bool, outDst, inDst netip.AddrPort) netip.AddrPort {
	local := listen.AddrPort(c.LocalAddr())
	if dst, err := listen.OriginalDst(c); err == nil && dst != local {
		return dst
	}
	switch {
	case !outbound:
		return inDst
	case outDst.IsValid():
		return outDst
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port())
}
