package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"golang.org/x/sys/unix"
)

// host is what doctor knows about the machine of the engine. What it can't see, on another machine or without the right
// to, is left empty and not judged.
type host struct {
	info    system.Info
	now     time.Time // when info.SystemTime was asked for
	compose error     // what is wrong with docker compose
	// The rest is known of an engine on this machine only.
	socket        string // its unix socket
	socketEnv     string // COMPOSURE_DOCKER_SOCK
	modules       []string
	maxNamespaces string // user.max_user_namespaces
	interfaces    []hostInterface
	networks      []network.Summary
	backends      []string // of iptables, that hold rules of address translation
}

type hostInterface struct {
	name   string
	prefix netip.Prefix
}

// neededModules are what the capture rules are made of: redirect, owner and conntrack matches, and address translation.
var neededModules = []string{"nf_nat", "nf_conntrack", "xt_REDIRECT", "xt_owner", "xt_conntrack"}

const (
	oldestEngine = "20.10"
	// maxSkew is how far the engine's clock may be off: citadel back-dates certificates by a minute.
	maxSkew = 30 * time.Second
)

// findings judges the host. It has no effects.
func (h *host) findings() []finding {
	var found []finding
	add := func(problem, advice string) { found = append(found, finding{Problem: problem, Advice: advice}) }
	if h.info.OSType != "linux" {
		add(fmt.Sprintf("the engine runs %s containers", cmp.Or(h.info.OSType, "unknown")), "switch it to Linux containers")
	}
	if olderThan(h.info.ServerVersion, oldestEngine) {
		add(fmt.Sprintf("the engine is version %s", h.info.ServerVersion), "upgrade Docker to "+oldestEngine+" or later")
	}
	if h.compose != nil {
		add(h.compose.Error(), "install the compose plugin: https://docs.docker.com/compose/install/")
	}
	if !h.info.IPv4Forwarding {
		add("the kernel does not forward IPv4: networks and published ports don't work", "sysctl -w net.ipv4.ip_forward=1")
	}
	if at, err := time.Parse(time.RFC3339Nano, h.info.SystemTime); err == nil {
		if skew := at.Sub(h.now).Abs(); skew > maxSkew {
			add(fmt.Sprintf("the engine's clock differs from this machine's by %s: certificates may not be valid yet, or expired", skew.Round(time.Second)),
				"set the clocks, by NTP; restart the engine's virtual machine if it has slept")
		}
	}
	if slices.Contains(h.info.SecurityOptions, "name=userns") {
		add("the engine remaps the users of containers (userns-remap): the keeper knows the mesh's processes by their user ids, and lets none of them in",
			"leave userns-remap out of the engine's daemon.json, or run the engine rootless")
	}
	return slices.Concat(found, h.rootless(), h.kernel(), h.subnets())
}

// rootless finds what an engine without root needs to be told.
func (h *host) rootless() []finding {
	var found []finding
	rootless := slices.Contains(h.info.SecurityOptions, "name=rootless")
	mounted := cmp.Or(h.socketEnv, "/var/run/docker.sock")
	if h.socket != "" && !sameFile(h.socket, mounted) {
		found = append(found, finding{Problem: fmt.Sprintf("the engine's socket is %s, the keeper would be given %s", h.socket, mounted),
			Advice: "put COMPOSURE_DOCKER_SOCK=" + h.socket + " into the project's .env"})
	} else if rootless && h.socket == "" && h.socketEnv == "" {
		found = append(found, finding{Level: levelNote, Problem: "the engine is rootless: its socket is not /var/run/docker.sock on its machine",
			Advice: "put COMPOSURE_DOCKER_SOCK=<its path> into the project's .env"})
	}
	if rootless && h.maxNamespaces == "0" {
		found = append(found, finding{Problem: "user namespaces are forbidden, which a rootless engine needs", Advice: "sysctl -w user.max_user_namespaces=15000"})
	}
	return found
}

// sameFile reports whether two paths are one file, /run and /var/run being one.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}

func (h *host) kernel() []finding {
	var found []finding
	if len(h.modules) > 0 {
		found = append(found, finding{Level: levelNote, Problem: "the kernel seems to lack " + strings.Join(h.modules, ", ") + ", of which the capture rules are made",
			Advice: "modprobe " + strings.Join(h.modules, " ") + "; a sandbox that can't program its rules says so and lets nothing pass"})
	}
	if len(h.backends) > 1 {
		found = append(found, finding{Level: levelNote, Problem: "the host has rules of Docker's in " + strings.Join(h.backends, " and in ") + " at once: the kernel obeys both",
			Advice: "choose one with `update-alternatives --set iptables`, then restart Docker and remove the other's rules; the sandboxes follow Docker's own in each namespace"})
	}
	return found
}

// subnets finds networks whose addresses belong to something else on the host too.
func (h *host) subnets() []finding {
	var found []finding
	for _, n := range h.networks {
		for _, config := range n.IPAM.Config {
			subnet, err := netip.ParsePrefix(config.Subnet)
			if err != nil {
				continue
			}
			for _, i := range h.interfaces {
				if i.prefix.Overlaps(subnet) && i.prefix.Addr().String() != config.Gateway && !strings.HasPrefix(i.name, "br-") && i.name != "docker0" {
					found = append(found, finding{Problem: fmt.Sprintf("subnet %s of network %s overlaps with %s of the host's %s: what is there can't be reached", subnet, n.Name, i.prefix.Masked(), i.name),
						Advice: "give the network another `ipam.config.subnet`, or the engine other `default-address-pools`"})
				}
			}
		}
	}
	return found
}

// olderThan compares versions part by part; one that is no version is not old.
func olderThan(version, than string) bool {
	a, b := strings.Split(version, "."), strings.Split(than, ".")
	for i := range b {
		var have, want int
		if i >= len(a) {
			return false
		}
		if _, err := fmt.Sscanf(a[i], "%d", &have); err != nil {
			return false
		}
		_, _ = fmt.Sscanf(b[i], "%d", &want) // a constant of ours
		if have != want {
			return have < want
		}
	}
	return false
}

// examineHost asks the engine and, if it is on this machine, the machine.
func examineHost(ctx context.Context, env *Env) (*host, error) {
	engine, err := env.Engine(ctx)
	if err != nil {
		return nil, err
	}
	h := &host{now: time.Now(), compose: checkCompose(ctx, env)}
	if h.info, err = engine.Info(ctx); err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("docker info: %w", err))
	}
	socket, local := strings.CutPrefix(engine.DaemonHost(), "unix://")
	if !local || !sameKernel(h.info.KernelVersion) {
		return h, nil
	}
	h.socket, h.socketEnv = socket, env.Getenv("COMPOSURE_DOCKER_SOCK")
	h.modules = missingModules("/", h.info.KernelVersion)
	if b, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil {
		h.maxNamespaces = strings.TrimSpace(string(b))
	}
	h.interfaces = hostInterfaces()
	if h.networks, err = engine.NetworkList(ctx, network.ListOptions{}); err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("list networks: %w", err))
	}
	h.backends = ruleBackends(ctx)
	return h, nil
}

// sameKernel reports whether the engine runs on this machine's kernel, and not in a virtual machine that lends its socket.
func sameKernel(version string) bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && unix.ByteSliceToString(u.Release[:]) == version
}

// missingModules are the needed modules that are neither loaded nor built in nor there to be loaded, as far as the module
// directory of the kernel tells.
func missingModules(rootDir, kernel string) []string {
	var known bytes.Buffer
	dir := filepath.Join(rootDir, "lib", "modules", kernel)
	for _, file := range []string{"modules.builtin", "modules.dep"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil
		}
		known.Write(b)
	}
	loaded, err := os.ReadFile(filepath.Join(rootDir, "proc", "modules"))
	if err != nil {
		return nil
	}
	have := map[string]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(loaded)); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), " ")
		have[name] = true
	}
	var missing []string
	for _, m := range neededModules {
		if !have[m] && !strings.Contains(known.String(), "/"+m+".ko") {
			missing = append(missing, m)
		}
	}
	return missing
}

func hostInterfaces() []hostInterface {
	var list []hostInterface
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				list = append(list, hostInterface{i.Name, p})
			}
		}
	}
	return list
}

// ruleBackends are the backends of iptables in which Docker has rules on this host, where that may be asked.
func ruleBackends(ctx context.Context) []string {
	var found []string
	for _, backend := range []string{"legacy", "nft"} {
		out, err := exec.CommandContext(ctx, "iptables-"+backend+"-save", "-t", "nat").Output()
		if err == nil && bytes.Contains(out, []byte("-A DOCKER ")) {
			found = append(found, "iptables-"+backend)
		}
	}
	return found
}
