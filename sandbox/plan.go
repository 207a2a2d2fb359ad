package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/composure-mesh/composure/mesh"
)

// IPv6Mode says what becomes of TCP over IPv6.
type IPv6Mode string

// The modes. There is none that lets IPv6 pass uncaptured.
const (
	// IPv6Off is for a kernel without IPv6.
	IPv6Off IPv6Mode = "off"
	// IPv6Capture mirrors the IPv4 rules.
	IPv6Capture IPv6Mode = "capture"
	// IPv6Reject has the guard alone, which resets what is not excluded: for a namespace with IPv6 whose
	// proxy cannot listen on it, or a kernel that cannot redirect it.
	IPv6Reject IPv6Mode = "reject"
)

// Options are what a user may choose about capture.
type Options struct {
	// ExcludeInboundPorts are the workload's ports that clients reach without the proxy.
	ExcludeInboundPorts []uint16
	// ExcludeOutboundPorts are the destination ports, and ExcludeOutboundCIDRs the destination networks of
	// either family, that the workload reaches without the proxy.
	ExcludeOutboundPorts []uint16
	ExcludeOutboundCIDRs []netip.Prefix
	IPv6                 IPv6Mode
}

// Our chains. Those of the nat table capture, those of the filter table guard.
const (
	chainIn       = "COMPOSURE_IN"
	chainOut      = "COMPOSURE_OUT"
	chainDNS      = "COMPOSURE_DNS"
	chainGuardIn  = "COMPOSURE_GUARD_IN"
	chainGuardOut = "COMPOSURE_GUARD_OUT"
	chainProxy    = "COMPOSURE_PROXY"
)

// proxyMark is the connmark of the proxy's own connections: 1337, as iptables-save prints it.
const proxyMark = "0x539"

// openPorts are the proxy's ports that are reached without capture: those that it serves.
var openPorts = []uint16{mesh.PortReady, mesh.PortMetrics}

const dnsPort = 53

// Validate reports all that is wrong with o.
func (o Options) Validate() error {
	var errs []error
	for _, p := range o.ExcludeInboundPorts {
		if p == mesh.PortInbound || p == mesh.PortOutbound {
			errs = append(errs, fmt.Errorf("inbound port %d can't be excluded: the proxy's capture listener is there", p))
		}
	}
	for _, p := range slices.Concat(o.ExcludeInboundPorts, o.ExcludeOutboundPorts) {
		if p == 0 {
			errs = append(errs, errors.New("port 0 can't be excluded: want 1 to 65535"))
		}
	}
	for _, c := range o.ExcludeOutboundCIDRs {
		if !c.IsValid() || c.Addr().Is4In6() || c.Addr().Zone() != "" {
			errs = append(errs, fmt.Errorf("outbound network %s can't be excluded: want a CIDR such as 10.0.0.0/8 or fd00::/8", c))
		}
	}
	return errors.Join(errs...)
}

// Plan is the rules that o asks for. The guards come first: should programming stop half way, TCP is refused
// and not let through.
func Plan(o Options) Ruleset {
	r := Ruleset{guard(IPv4, o)}
	if o.IPv6 == IPv6Capture || o.IPv6 == IPv6Reject {
		r = append(r, guard(IPv6, o))
	}
	r = append(r, capture(IPv4, o))
	if o.IPv6 == IPv6Capture {
		r = append(r, capture(IPv6, o))
	}
	return r
}

// capture is the nat table. Every verdict but REDIRECT is a RETURN out of our own chain, so that the rules
// below our jump, such as Docker's for its DNS, still get their turn; a RETURN in OUTPUT itself would end it.
func capture(f Family, o Options) Table {
	t := Table{
		Family: f,
		Name:   "nat",
		Chains: []string{chainIn, chainOut},
		Jumps:  []Rule{{"PREROUTING", "-p tcp -j " + chainIn}, {"OUTPUT", "-p tcp -j " + chainOut}},
	}
	add := func(chain, spec string) { t.Rules = append(t.Rules, Rule{chain, spec}) }

	// PREROUTING comes before routing: a frame to our MAC address may carry any destination. What is not ours to
	// answer for is the kernel's to drop or forward; redirected, the proxy would dial it in the sender's stead.
	if f == IPv4 {
		add(chainIn, "-d 127.0.0.0/8 -j RETURN")
	} else {
		add(chainIn, "-d ::1/128 -j RETURN")
	}
	add(chainIn, "-m addrtype ! --dst-type LOCAL -j RETURN")
	for _, p := range slices.Concat(openPorts, o.ExcludeInboundPorts) {
		add(chainIn, match("--dport", p)+" -j RETURN")
	}
	add(chainIn, redirect(mesh.PortInbound))

	if f == IPv4 {
		// A connection to this address that arrives proves that capture works. It must come before loopback.
		add(chainOut, "-d "+mesh.SelfTestIP+"/32 "+redirect(mesh.PortOutbound))
		add(chainOut, "-d 127.0.0.0/8 -j RETURN")
	} else {
		add(chainOut, "-d ::1/128 -j RETURN")
	}
	add(chainOut, owner()+" -j RETURN")
	add(chainOut, match("--dport", dnsPort)+" -j RETURN")
	for _, p := range o.ExcludeOutboundPorts {
		add(chainOut, match("--dport", p)+" -j RETURN")
	}
	for _, c := range cidrs(f, "-d", o) {
		add(chainOut, c+"-j RETURN")
	}
	add(chainOut, redirect(mesh.PortOutbound))
	if f == IPv4 { // Docker's resolver has no other address
		captureDNS(&t)
	}
	return t
}

// captureDNS leads what asks Docker's resolver to mesh.PortDNS, save the proxy and the sandbox, who pass on to the resolver
// what is none of the mesh's names. Only that one address is matched: the engine's own lookups leave from inside the
// namespace, for the servers behind the resolver, and must not come back to it.
func captureDNS(t *Table) {
	t.Chains = append(t.Chains, chainDNS)
	for _, uid := range []int{mesh.UIDProxy, mesh.UIDSandbox} {
		t.Rules = append(t.Rules, Rule{chainDNS, fmt.Sprintf("-m owner --uid-owner %d -j RETURN", uid)})
	}
	for _, proto := range []string{"udp", "tcp"} {
		t.Rules = append(t.Rules, Rule{chainDNS, fmt.Sprintf("-p %s -j REDIRECT --to-ports %d", proto, mesh.PortDNS)})
		t.Jumps = append(t.Jumps, Rule{"OUTPUT", fmt.Sprintf("-d %s/32 -p %s -m %s --dport %d -j %s", mesh.DockerDNS, proto, proto, dnsPort, chainDNS)})
	}
}

// guard is the filter table, which sees packets after the nat table has decided. What passes first is what
// most packets are; what passes at all is what capture lets pass, and its replies.
func guard(f Family, o Options) Table {
	t := Table{
		Family: f,
		Name:   "filter",
		Chains: []string{chainGuardIn, chainGuardOut, chainProxy},
		Jumps:  []Rule{{"INPUT", "-p tcp -j " + chainGuardIn}, {"OUTPUT", "-p tcp -j " + chainGuardOut}},
	}
	add := func(chain, spec string) { t.Rules = append(t.Rules, Rule{chain, spec}) }
	open := slices.Concat(openPorts, o.ExcludeInboundPorts)
	excluded := slices.Concat([]uint16{dnsPort}, o.ExcludeOutboundPorts)

	add(chainGuardIn, "-i lo -j RETURN")
	add(chainGuardIn, "-m conntrack --ctstate DNAT -j RETURN") // captured
	add(chainGuardIn, "-m connmark --mark "+proxyMark+" -j RETURN")
	for _, p := range open {
		add(chainGuardIn, match("--dport", p)+" -j RETURN")
	}
	for _, p := range excluded {
		add(chainGuardIn, match("--sport", p)+" -j RETURN")
	}
	for _, c := range cidrs(f, "-s", o) {
		add(chainGuardIn, c+"-j RETURN")
	}
	refuse(add, chainGuardIn)

	add(chainGuardOut, "-o lo -j RETURN")
	add(chainGuardOut, "-m conntrack --ctstate DNAT -j RETURN")
	add(chainGuardOut, "-m connmark --mark "+proxyMark+" -j RETURN")
	add(chainGuardOut, owner()+" -g "+chainProxy)
	for _, p := range open {
		add(chainGuardOut, match("--sport", p)+" -j RETURN")
	}
	for _, p := range excluded {
		add(chainGuardOut, match("--dport", p)+" -j RETURN")
	}
	for _, c := range cidrs(f, "-d", o) {
		add(chainGuardOut, c+"-j RETURN")
	}
	refuse(add, chainGuardOut)

	// Entered by goto: its end is the return to OUTPUT, so the proxy's packet passes.
	add(chainProxy, "-j CONNMARK --set-xmark "+proxyMark+"/0xffffffff")
	return t
}

// refuse ends a guard. A reset passes, for it ends the connection that the guard is there to end. A packet
// that conntrack can't place (ctstate INVALID, such as one outside the window on a busy host) may belong to one
// of the proxy's connections, whose mark it doesn't carry: to answer it with a reset would kill that
// connection, so it is dropped, and TCP sends it again.
func refuse(add func(chain, spec string), chain string) {
	add(chain, "-p tcp -m tcp --tcp-flags RST RST -j RETURN")
	add(chain, "-m conntrack --ctstate INVALID -j DROP")
	add(chain, "-p tcp -j REJECT --reject-with tcp-reset")
}

func redirect(port uint16) string { return fmt.Sprintf("-p tcp -j REDIRECT --to-ports %d", port) }

func match(flag string, port uint16) string { return fmt.Sprintf("-p tcp -m tcp %s %d", flag, port) }

// owner matches the proxy's own packets, by its user alone: a group can be had besides any user, and would be a way
// round the proxy.
func owner() string { return fmt.Sprintf("-m owner --uid-owner %d", mesh.UIDProxy) }

// cidrs is one match a network of family f that o excludes, each followed by a space.
func cidrs(f Family, flag string, o Options) []string {
	var out []string
	for _, c := range o.ExcludeOutboundCIDRs {
		switch {
		case c.Addr().Is4() != (f == IPv4):
		case c.Bits() == 0:
			out = append(out, "") // iptables-save writes no match for everything
		default:
			out = append(out, flag+" "+c.Masked().String()+" ")
		}
	}
	return out
}
