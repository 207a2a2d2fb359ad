// Bench measures the proxy beside nginx and haproxy, as Debian packages them, on this machine. Proxies have one core
// to themselves, the load and the application behind another. All sides of a case are started, then measured in turn,
// round after round, in one run: only ratios of such a run mean anything. See docs/perf.md for the cases and what is
// unequal about them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if helper, ok := helpers[args[0]]; ok {
			return helper(ctx, args[1:])
		}
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := fs.String("cases", "", "comma-separated `NAMES` of cases; empty for all")
	quick := fs.Bool("quick", false, "fewer and shorter rounds")
	results := fs.String("results", "", "`FILE` to write the results to, as JSON")
	doc := fs.String("doc", "", "`FILE` whose table of results is replaced")
	proxy := fs.String("proxy", "", "`FILE` of the proxy to measure; empty builds ./cmd/proxy")
	beside := fs.String("beside", "", "`FILE` of another build of the proxy, which takes the opponents' places")
	profiles := fs.String("profiles", "", "`DIRECTORY` to write a CPU profile of our side of each case to")
	list := fs.Bool("list", false, "only list the cases")
	if err := fs.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if *list {
		for _, c := range chosen {
			fmt.Printf("%-14s %s\n", c.name, c.about)
		}
		return nil
	}
	b, err := newBench(ctx, *quick, *proxy)
	if err != nil {
		return err
	}
	defer b.close()
	b.profiles, b.other = *profiles, *beside
	for _, c := range chosen {
		begun := time.Now()
		if err := b.run(c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-14s %5.1f s\n", c.name, time.Since(begun).Seconds())
	}
	b.print(os.Stdout)
	if *results != "" {
		if err := b.writeJSON(*results); err != nil {
			return err
		}
	}
	if *doc != "" {
		return b.writeDoc(*doc)
	}
	return nil
}

// choose finds cases by name, or by the part of it before a dash.
func choose(names string) ([]testCase, error) {
	if names == "" {
		return cases, nil
	}
	var out []testCase
	for name := range strings.SplitSeq(names, ",") {
		name = strings.TrimSpace(name)
		known := len(out)
		for _, c := range cases {
			if c.name == name || strings.HasPrefix(c.name, name+"-") && !slices.ContainsFunc(cases, func(c testCase) bool { return c.name == name }) {
				out = append(out, c)
			}
		}
		if len(out) == known {
			return nil, fmt.Errorf("no case %q: -list lists them", name)
		}
	}
	return out, nil
}

// bench is one run.
type bench struct {
	ctx      context.Context //nolint:containedctx // of the whole program
	dir      string          // for sockets, configurations and certificates
	self     string          // this program, which is its own load and backend
	proxy    string
	other    string // another build of the proxy, or empty
	profiles string

	rounds   int
	duration time.Duration // of one side's turn
	proxyCPU int
	files    int // descriptors of each process
	loadCPU  int

	running []*process
	ran     []testCase
	rows    []row
}

// packages are the programs that are needed, by Debian package.
var packages = map[string]string{
	"nginx": "nginx-light libnginx-mod-stream", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "taskset": "util-linux",
}

func newBench(ctx context.Context, quick bool, proxy string) (*bench, error) {
	var missing []string
	for program, pkg := range packages {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("missing: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	files, err := raiseFileLimit()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "composure-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{ctx: ctx, files: files, dir: dir, self: self, proxy: proxy, rounds: 5, duration: 2 * time.Second}
	if quick {
		b.rounds, b.duration = 3, time.Second
	}
	if b.proxyCPU, b.loadCPU, err = cores(); err != nil {
		return nil, err
	}
	if proxy == "" {
		b.proxy = filepath.Join(dir, "proxy")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.proxy, "./cmd/proxy")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the proxy, from the repository's root: %w: %s", err, out)
		}
	}
	return b, nil
}

// run carries out one case, and ends what it has started.
func (b *bench) run(c testCase) error {
	defer b.stopAll()
	rounds, duration := b.rounds, b.duration
	if c.brief {
		b.rounds, b.duration = 3, time.Second
	}
	rows, err := c.run(b)
	b.rounds, b.duration = rounds, duration
	if err != nil {
		return err
	}
	for i := range rows {
		rows[i].Case = c.name
	}
	b.rows, b.ran = append(b.rows, rows...), append(b.ran, c)
	return nil
}

func (b *bench) close() {
	b.stopAll()
	_ = os.RemoveAll(b.dir) // in the machine's temporary directory
}
