//go:build linux

package sandbox

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// probeChain is where single rules are tried to find the one that the kernel refuses.
const probeChain = "COMPOSURE_PROBE"

// features are the kernel modules behind the matches and targets that our rules use, IPv4's and IPv6's.
var features = map[string][2]string{
	"-m addrtype":  {"xt_addrtype", "xt_addrtype"},
	"-m conntrack": {"xt_conntrack", "xt_conntrack"},
	"-m connmark":  {"xt_connmark", "xt_connmark"},
	"-m owner":     {"xt_owner", "xt_owner"},
	"-m tcp":       {"xt_tcpudp", "xt_tcpudp"},
	"-m udp":       {"xt_tcpudp", "xt_tcpudp"},
	"-j CONNMARK":  {"xt_connmark", "xt_connmark"},
	"-j REDIRECT":  {"xt_REDIRECT", "xt_REDIRECT"},
	"-j REJECT":    {"ipt_REJECT", "ip6t_REJECT"},
}

// explain adds to a failure of iptables what is missing and what to do about it. iptables itself says little
// more than "No such file or directory".
func (nf *Netfilter) explain(ctx context.Context, f Family, table string, cause error) error {
	if strings.Contains(cause.Error(), "xtables.lock") {
		return fmt.Errorf("the lock file can't be made: mount a tmpfs on /run: %w", cause)
	}
	if nf.tables[f] == nil {
		return cause
	}
	if nf.restore(ctx, f, "*"+table+"\nCOMMIT\n") != nil {
		return fmt.Errorf("kernel feature %s is missing: load it on the Docker host (modprobe %[1]s): %w", nf.tableModule(f, table), cause)
	}
	if module := nf.missingFeature(ctx, f, table); module != "" {
		return fmt.Errorf("kernel feature %s is missing: load it on the Docker host (modprobe %[1]s): %w", module, cause)
	}
	return cause
}

// missingFeature tries the rules of the plan one by one in a chain that nothing jumps to, and names the module
// behind the first that fails.
func (nf *Netfilter) missingFeature(ctx context.Context, f Family, table string) string {
	defer func() {
		// Best effort: an unused chain does no harm.
		_ = nf.restore(ctx, f, "*"+table+"\n:"+probeChain+" - [0:0]\n-X "+probeChain+"\nCOMMIT\n")
	}()
	for _, t := range Plan(Options{IPv6: IPv6Capture}) {
		if t.Family != f || t.Name != table {
			continue
		}
		for _, r := range t.Rules {
			module := moduleOf(f, r)
			if module == "" {
				continue
			}
			spec := strings.Replace(r.Spec, "-g "+chainProxy, "-j RETURN", 1)
			if nf.restore(ctx, f, "*"+table+"\n:"+probeChain+" - [0:0]\n-A "+probeChain+" "+spec+"\nCOMMIT\n") != nil {
				return module
			}
		}
	}
	return ""
}

// moduleOf is the module that r needs most particularly: its target's, else that of its last match.
func moduleOf(f Family, r Rule) string {
	words := strings.Fields(r.Spec)
	for i := len(words) - 2; i >= 0; i-- {
		if m, ok := features[words[i]+" "+words[i+1]]; ok {
			if f == IPv6 {
				return m[1]
			}
			return m[0]
		}
	}
	return ""
}

func (nf *Netfilter) tableModule(f Family, table string) string {
	switch {
	case nf.Backend == BackendNFT && table == "nat":
		return "nft_chain_nat"
	case nf.Backend == BackendNFT:
		return "nf_tables"
	case f == IPv6:
		return "ip6table_" + table
	default:
		return "iptable_" + table
	}
}

type capability struct {
	number int
	name   string
}

// Programming needs NET_ADMIN, and in the legacy backend, which talks through a raw socket, NET_RAW.
var (
	netAdmin = capability{unix.CAP_NET_ADMIN, "NET_ADMIN"}
	netRaw   = capability{unix.CAP_NET_RAW, "NET_RAW"}
)

// needCaps names the first capability that the process lacks.
func needCaps(caps ...capability) error {
	for _, c := range caps {
		have, err := hasCap(c.number)
		if err != nil {
			return err
		}
		if !have {
			return fmt.Errorf("capability %s is missing: add it to cap_add of the sandbox's service (it is dropped again after programming)", c.name)
		}
	}
	return nil
}

// hasCap reads the process's effective capabilities.
func hasCap(number int) (bool, error) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return false, err
	}
	set, err := strconv.ParseUint(statusField(status, "CapEff"), 16, 64)
	if err != nil {
		return false, fmt.Errorf("CapEff in /proc/thread-self/status: %w", err)
	}
	return set&(1<<number) != 0, nil
}

// statusField is the value of one field of /proc/<pid>/status (proc_pid_status(5)), or "".
func statusField(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
