package compose

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Config is how to inject. Version is required.
type Config struct {
	// Version is the tag of the images, SandboxTag that of the sandbox's; empty is Version.
	Version, SandboxTag string
	// ImagePrefix comes before /<component>; empty is "composure", whose images meshctl loads itself and which
	// are never pulled. Images of another prefix are pulled where they are missing.
	ImagePrefix string
	// Scale is the number of replicas of services, over what the files say.
	Scale map[string]int
	// Ingress are the ports of istio-ingressgateway; without any there is none.
	Ingress []PortMap
	// IngressSettings are the settings (package settings) of istio-ingressgateway that are not the default, by name.
	IngressSettings map[string]string
	// Egress adds istio-egressgateway.
	Egress bool
	// LogLevel, AccessLog, TrustDomain and CertLifetime are handed to the components; zero is their default.
	LogLevel, AccessLog, TrustDomain string
	CertLifetime                     time.Duration
	// MutualTLS is the mesh's default, STRICT or PERMISSIVE; empty is PERMISSIVE.
	MutualTLS string
	// Joins are networks for planes besides their way out.
	Joins Joins
	// External is the name of an installed mesh, whose control plane the project uses; empty gives it planes of its own.
	External string
	// Out is the output file, "-" for none; empty chooses one (Result.Path).
	Out string
	// Full writes one flattened file instead of an override.
	Full bool
}

// Change is one field that inject changes.
type Change struct {
	Service  string // compose service
	Path     string // of the field below the service
	From, To string // YAML, on one line; To may be the path that a value moved to
	Why      string
}

// Result is what inject has to say and to write.
type Result struct {
	// Output is the content of the file at Path. Path is empty where it goes to standard output.
	Output []byte
	Path   string
	// Automatic says that Compose reads Path by itself: plain `docker compose up` is all there is to do.
	Automatic bool
	// ComposeFile is the line COMPOSE_FILE=… that makes Compose read the right files, Flags the same as -f flags;
	// both empty if Automatic.
	ComposeFile string
	Flags       []string
	// External is Config.External.
	External string
	Changes  []Change
	Warnings []Warning
	// Notes are what the user should know about the project as a whole.
	Notes []string
	// Unknown are fields of the project's that this meshctl does not know, and left as they are.
	Unknown []Unknown

	obsolete []string // outputs of earlier runs that would get in the way
}

// ErrNothing says that no service of the project can be in the mesh.
var ErrNothing = errors.New("no service of the project can be in the mesh")

// Inject makes the output for a project. It writes nothing: Result.Write does.
func Inject(ctx context.Context, s *Source, cfg Config) (*Result, error) {
	if cfg.Version == "" {
		return nil, errors.New("inject: the version of the images is not set")
	}
	plan, err := s.Plan(cfg.Scale)
	if err != nil {
		return nil, err
	}
	if len(plan.Workloads) == 0 {
		reasons := make([]string, len(plan.Warnings))
		for i, w := range plan.Warnings {
			reasons[i] = w.String()
		}
		return nil, fmt.Errorf("%w: %s", ErrNothing, strings.Join(reasons, "; "))
	}
	if err := errors.Join(s.checkExternal(cfg), s.checkJoins(cfg)); err != nil {
		return nil, err
	}
	res := &Result{Warnings: plan.Warnings, Unknown: s.Unknown(), External: cfg.External}
	if err := s.choose(res, cfg); err != nil {
		return nil, err
	}
	dir := s.Dir
	if res.Path != "" {
		dir = filepath.Dir(res.Path)
	}
	e := &emitter{src: s, plan: plan, cfg: cfg, resolved: map[fieldOf]bool{}, copied: map[fieldOf]bool{}}
	for { // until every value that can't be moved as it is written is moved as it is meant
		if res.Output, err = e.output(dir); err != nil {
			return nil, err
		}
		diffs, err := e.prove(ctx, res.Output)
		if err != nil {
			return nil, fmt.Errorf("the project does not load together with the override that inject made for it, so nothing is written: %w", err)
		}
		if len(diffs) == 0 {
			break
		}
		if !e.resolve(diffs) {
			return nil, fmt.Errorf("inject would change more than it should, so nothing is written: %w", errors.Join(diffErrors(s, diffs)...))
		}
	}
	res.Changes = e.changes
	if s.rawErr != nil {
		res.Notes = append(res.Notes, fmt.Sprintf("variables in what moves are resolved, since Compose can't load the project with its variables as they are written (%v): inject again when they change", s.rawErr))
	}
	if e.nodes > maxNodes {
		res.Notes = append(res.Notes, fmt.Sprintf("the override has %d YAML nodes, and Compose from version 5 on reads no file with more than %d: split the project, or leave services out by label", e.nodes, maxNodes))
	}
	if len(cfg.Ingress) > 0 && e.onlyInternal() {
		res.Notes = append(res.Notes, "every network with a service of the mesh is internal: the engine does not publish the ports of "+Gateway+" there")
	}
	if cfg.Full {
		if res.Output, err = s.flatten(ctx, cfg, dir, res.Output); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// prove loads the project with the override and lists what differs from what is meant.
func (e *emitter) prove(ctx context.Context, override []byte) ([]diff, error) {
	model, err := e.src.merge(ctx, override, e.plan.clones())
	if err != nil {
		return nil, err
	}
	strayed, err := e.strayed(model)
	if err != nil {
		return nil, err
	}
	project, err := e.src.typed(model)
	if err != nil {
		return nil, err
	}
	return append(e.verify(project), strayed...), nil
}

// choose decides where the output goes and what Compose must be told.
func (s *Source) choose(res *Result, cfg Config) error {
	home := filepath.Dir(s.Files[0])
	auto := s.discovered && len(s.Files) == 1 && !cfg.Full
	switch {
	case cfg.Out == "-":
	case cfg.Out != "":
		res.Path = s.abs(cfg.Out)
		auto = auto && filepath.Dir(res.Path) == home && filepath.Base(res.Path) == autoOutput
	case auto:
		res.Path = filepath.Join(home, autoOutput)
	default:
		res.Path = filepath.Join(home, meshOutput)
	}
	res.Automatic = auto && res.Path != ""
	if slices.Contains(s.Files, res.Path) {
		return fmt.Errorf("-o %s is one of the project's own compose files: want another name", relative(s.workingDir, res.Path))
	}
	if s.discovered && !res.Automatic && res.Path != "" {
		// Compose takes one override file: an automatic one of an earlier run would hide the user's.
		for _, f := range s.Ours {
			if f != res.Path && filepath.Base(f) == autoOutput {
				res.obsolete = append(res.obsolete, f)
				res.Notes = append(res.Notes, fmt.Sprintf("%s of an earlier inject goes: Compose reads one override file only, and it would hide %s",
					relative(s.workingDir, f), relative(s.workingDir, s.Files[len(s.Files)-1])))
			}
		}
	}
	if !res.Automatic && res.Path != "" {
		var files []string
		for _, f := range s.told(res.Path, cfg.Full) {
			files = append(files, f)
			res.Flags = append(res.Flags, "-f", f)
		}
		res.ComposeFile = "COMPOSE_FILE=" + strings.Join(files, s.separator)
	}
	return nil
}

// told are the files that Compose must be told to read.
func (s *Source) told(output string, full bool) []string {
	files := append(slices.Clone(s.Files), output)
	if full {
		files = []string{output}
	}
	for i, f := range files {
		files[i] = relative(s.workingDir, f)
	}
	return files
}

// Flags are the -f flags with which Compose reads the project and the output of an earlier inject, at path with header
// h; none where it finds them by itself.
func (s *Source) Flags(path string, h Header) []string {
	full := slices.Contains(h.Flags, "--full=true")
	home := filepath.Dir(s.Files[0])
	if s.discovered && (path == "" || len(s.Files) == 1 && !full && path == filepath.Join(home, autoOutput)) {
		return nil
	}
	files := s.Files
	if path != "" {
		files = s.told(path, full)
	}
	var flags []string
	for _, f := range files {
		flags = append(flags, "-f", relative(s.workingDir, s.abs(f)))
	}
	return flags
}

// The names of output files. Compose reads the first by itself.
const (
	autoOutput = "compose.override.yaml"
	meshOutput = "compose.mesh.yaml"
)

// PortMap publishes a port of the ingress gateway.
type PortMap struct {
	Host    string // "30080" or "127.0.0.1:30080"
	Gateway uint16
}

// String is what ParsePortMap reads.
func (p PortMap) String() string { return fmt.Sprintf("%s:%d", p.Host, p.Gateway) }

// ParsePortMap reads [IP:]HOSTPORT[:GATEWAYPORT]; the gateway's port is 80 where it is not given. An IPv6
// address stands in brackets.
func ParsePortMap(v string) (PortMap, error) {
	bad := func() (PortMap, error) {
		return PortMap{}, fmt.Errorf("ingress %q: want [IP:]HOSTPORT[:GATEWAYPORT], such as 30080 or 127.0.0.1:8443:443", v)
	}
	ip, rest := "", v
	if i := strings.LastIndex(v, "]:"); i >= 0 {
		ip, rest = v[:i+1], v[i+2:]
	} else if first, after, ok := strings.Cut(v, ":"); ok && strings.Contains(first, ".") {
		ip, rest = first, after
	}
	if ip != "" {
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); err != nil {
			return bad()
		}
		ip += ":"
	}
	host, gateway, ok := strings.Cut(rest, ":")
	if !ok {
		gateway = "80"
	}
	if _, err := parsePort(host); err != nil && host != "0" { // 0: a free port, which the engine chooses
		return bad()
	}
	port, err := parsePort(gateway)
	if err != nil {
		return bad()
	}
	return PortMap{Host: ip + host, Gateway: port}, nil
}

// line is a YAML value on one line, for people.
func line(v any) string {
	n := value(v)
	if n == nil {
		return ""
	}
	n = flowed(n)
	b, err := yaml.Marshal(n)
	if err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSpace(string(b))
}

func flowed(n *yaml.Node) *yaml.Node {
	c := *n
	c.Style |= yaml.FlowStyle
	if c.Kind == yaml.ScalarNode {
		c.Style = 0
	}
	c.Content = nil
	for _, child := range n.Content {
		c.Content = append(c.Content, flowed(child))
	}
	return &c
}
