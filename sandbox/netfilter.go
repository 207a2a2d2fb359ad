//go:build linux

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// Backend is one of the two implementations of iptables. Rules of both are in force at the same time, in an
// order that depends on which was loaded last, so ours go where Docker's are.
type Backend string

// The backends, as in the names of their programs: iptables-nft, iptables-legacy.
const (
	BackendNFT    Backend = "nft"
	BackendLegacy Backend = "legacy"
)

// lockWait is how many seconds the legacy backend waits for another program's lock.
const lockWait = 5

// dockerChain is the nat chain in which the engine puts the rules of its DNS.
const dockerChain = "DOCKER_OUTPUT"

// Netfilter programs and reads the rules of the process's network namespace through the iptables programs of
// one backend, which it finds on the PATH.
type Netfilter struct {
	Backend Backend
	// tables holds go-iptables's handle for each family; IPv6's is nil where its program is missing.
	tables map[Family]*iptables.IPTables
}

// Open chooses the backend: Docker's own if its chains are found in one of them, else nft, else legacy.
func Open(ctx context.Context) (*Netfilter, error) {
	if err := needCaps(netAdmin); err != nil {
		return nil, err
	}
	var first *Netfilter
	var errs []error
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		// To look into the legacy tables makes them, so they are left alone where none exists and nft works.
		if b == BackendLegacy && first != nil && !legacyInUse() {
			break
		}
		nf, err := openBackend(ctx, b)
		switch {
		case err != nil:
			errs = append(errs, err)
		case nf.has(dockerChain):
			return nf, nil
		case first == nil:
			first = nf
		}
	}
	if first == nil {
		return nil, fmt.Errorf("no usable iptables: %w", errors.Join(errs...))
	}
	return first, nil
}

func openBackend(ctx context.Context, b Backend) (*Netfilter, error) {
	nf := &Netfilter{Backend: b, tables: map[Family]*iptables.IPTables{}}
	needed := []capability{netAdmin}
	if b == BackendLegacy {
		needed = append(needed, netRaw)
	}
	if err := needCaps(needed...); err != nil {
		return nil, fmt.Errorf("%s: %w", nf.program(IPv4), err)
	}
	for _, f := range []Family{IPv4, IPv6} {
		proto := iptables.ProtocolIPv4
		if f == IPv6 {
			proto = iptables.ProtocolIPv6
		}
		ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(nf.program(f)), iptables.Timeout(lockWait))
		if err != nil {
			if f == IPv6 && errors.Is(err, exec.ErrNotFound) {
				continue
			}
			return nil, fmt.Errorf("%s: %w", nf.program(f), err)
		}
		nf.tables[f] = ipt
	}
	// The programs of a backend exist where its kernel half may not.
	if _, err := nf.tables[IPv4].ListChains("nat"); err != nil {
		return nil, fmt.Errorf("%s: read table nat: %w", nf.program(IPv4), nf.explain(ctx, IPv4, "nat", err))
	}
	return nf, nil
}

func (nf *Netfilter) program(f Family) string {
	if f == IPv6 {
		return "ip6tables-" + string(nf.Backend)
	}
	return "iptables-" + string(nf.Backend)
}

func (nf *Netfilter) has(chain string) bool {
	ok, err := nf.tables[IPv4].ChainExists("nat", chain)
	return err == nil && ok
}

// legacyInUse reports whether the namespace has legacy nat rules; the kernel lists the tables that exist.
func legacyInUse() bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(names)), "nat")
}

// Program puts Plan(o) in force and reads it back. Where the kernel can't redirect IPv6, IPv6 is rejected. The
// result is what became of IPv6.
func (nf *Netfilter) Program(ctx context.Context, o Options, log *slog.Logger) (IPv6Mode, error) {
	err := nf.Apply(ctx, Plan(o))
	var failed *TableError
	if o.IPv6 == IPv6Capture && errors.As(err, &failed) && failed.Family == IPv6 && failed.Table == "nat" {
		log.Warn("IPv6 can't be captured, so TCP over it is rejected", "error", err)
		o.IPv6 = IPv6Reject
		err = nf.Apply(ctx, Plan(o))
	}
	if err != nil {
		return "", err
	}
	return o.IPv6, nf.Verify(Plan(o))
}

// TableError says which table could not be programmed.
type TableError struct {
	Family Family
	Table  string
	Err    error
}

func (e *TableError) Error() string {
	return fmt.Sprintf("program the %s table %s: %v", e.Family, e.Table, e.Err)
}

func (e *TableError) Unwrap() error { return e.Err }

// Apply puts the rules in force, each table at once. Doing it again replaces ours and leaves others' alone.
func (nf *Netfilter) Apply(ctx context.Context, rules Ruleset) error {
	for _, t := range rules {
		if err := nf.apply(ctx, t); err != nil {
			return &TableError{Family: t.Family, Table: t.Name, Err: nf.explain(ctx, t.Family, t.Name, err)}
		}
	}
	return nil
}

func (nf *Netfilter) apply(ctx context.Context, t Table) error {
	ipt := nf.tables[t.Family]
	if ipt == nil {
		return fmt.Errorf("%s is not installed", nf.program(t.Family))
	}
	var stale []Rule
	for _, jump := range t.Jumps {
		rules, err := nf.list(t.Family, t.Name, jump.Chain)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if r == jump {
				stale = append(stale, r)
			}
		}
	}
	return nf.restore(ctx, t.Family, t.restore(stale))
}

// restore feeds iptables-restore, which go-iptables does not wrap: its one exec a rule would leave gaps.
func (nf *Netfilter) restore(ctx context.Context, f Family, input string) error {
	name := nf.program(f) + "-restore"
	cmd := exec.CommandContext(ctx, name, "--noflush", "--wait", strconv.Itoa(lockWait))
	cmd.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// list is the rules of one chain.
func (nf *Netfilter) list(f Family, table, chain string) ([]Rule, error) {
	lines, err := nf.tables[f].List(table, chain)
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for _, line := range lines {
		if spec, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			rules = append(rules, Rule{chain, spec})
		}
	}
	return rules, nil
}

// Verify reads the rules back and reports every difference from what they should be.
func (nf *Netfilter) Verify(rules Ruleset) error {
	var errs []error
	for _, t := range rules {
		if nf.tables[t.Family] == nil {
			errs = append(errs, fmt.Errorf("%s is not installed", nf.program(t.Family)))
			continue
		}
		for _, chain := range t.Chains {
			errs = append(errs, nf.verifyChain(t, chain))
		}
		for _, jump := range t.Jumps {
			errs = append(errs, nf.verifyJump(t, jump))
		}
	}
	return errors.Join(errs...)
}

func (nf *Netfilter) verifyChain(t Table, chain string) error {
	have, err := nf.list(t.Family, t.Name, chain)
	if err != nil {
		return fmt.Errorf("%s table %s: chain %s: %w", t.Family, t.Name, chain, err)
	}
	want := slices.DeleteFunc(slices.Clone(t.Rules), func(r Rule) bool { return r.Chain != chain })
	for i := range max(len(have), len(want)) {
		switch {
		case i >= len(have):
			return fmt.Errorf("%s table %s: rule %q is missing", t.Family, t.Name, want[i])
		case i >= len(want):
			return fmt.Errorf("%s table %s: rule %q is not one of ours", t.Family, t.Name, have[i])
		case have[i] != want[i]:
			return fmt.Errorf("%s table %s: rule %d of %s is %q, want %q", t.Family, t.Name, i+1, chain, have[i].Spec, want[i].Spec)
		}
	}
	return nil
}

// verifyJump wants the jump once. Others may insert theirs above ours later, as Docker does for its DNS.
func (nf *Netfilter) verifyJump(t Table, jump Rule) error {
	have, err := nf.list(t.Family, t.Name, jump.Chain)
	if err != nil {
		return fmt.Errorf("%s table %s: chain %s: %w", t.Family, t.Name, jump.Chain, err)
	}
	n := 0
	for _, r := range have {
		if r == jump {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%s table %s: rule %q is there %d times, want once", t.Family, t.Name, jump, n)
	}
	return nil
}

// VerifyPlan reads back the rules that Program has made for o, whether it captures IPv6 or, failing that,
// rejects it.
func (nf *Netfilter) VerifyPlan(o Options, mode IPv6Mode) error {
	o.IPv6 = mode
	err := nf.Verify(Plan(o))
	if err != nil && mode == IPv6Capture {
		o.IPv6 = IPv6Reject
		if nf.Verify(Plan(o)) == nil {
			return nil
		}
	}
	return err
}
