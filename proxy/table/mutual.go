package table

import (
	"net/netip"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// mutual is what our own listeners take.
type mutual struct {
	modes     snapshot.Modes
	published map[uint16]bool
	gateways  map[netip.Addr]bool
	subnets   []netip.Prefix
}

func (b *builder) mutual(s *snapshot.ServerTLS) {
	m := mutual{modes: s.Modes, published: map[uint16]bool{}, gateways: map[netip.Addr]bool{}}
	b.modes("mutual TLS", &s.Modes)
	for _, p := range s.Published {
		m.published[p] = true
	}
	for _, text := range s.Gateways {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			b.refuse("mutual TLS: gateways: %w", err)
			continue
		}
		m.gateways[ip.Unmap()] = true
	}
	for _, text := range s.Subnets {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			b.refuse("mutual TLS: subnets: %w", err)
			continue
		}
		m.subnets = append(m.subnets, subnet)
	}
	b.t.mutual = m
}

func (b *builder) modes(object string, m *snapshot.Modes) {
	known := func(mode snapshot.MutualTLS) {
		switch mode {
		case "", snapshot.Permissive, snapshot.Strict, snapshot.Disable:
		default:
			b.refuse("%s: mode %q is not known, want PERMISSIVE, STRICT or DISABLE", object, mode)
		}
	}
	known(m.Mode)
	for _, p := range m.Ports {
		known(p.Mode)
	}
}

// Mode is whether our listeners take plain text at a port, and what has decided it.
func (t *Table) Mode(port uint16) (mode snapshot.MutualTLS, source string) {
	return t.mutual.modes.At(port)
}

// TakesPlainText reports whether a client may send plain text to a port of ours. Where that is STRICT, it may if it is the host
// or the outside world, for which the port is published: what comes from there has the address of a network's gateway, or
// one that is of none of the networks that we are attached to.
func (t *Table) TakesPlainText(remote netip.Addr, port uint16) bool {
	if mode, _ := t.Mode(port); mode != snapshot.Strict {
		return true
	}
	m := &t.mutual
	if !m.published[port] || len(m.subnets) == 0 {
		return false
	}
	remote = remote.Unmap().WithZone("")
	if m.gateways[remote] {
		return true
	}
	if remote.IsLinkLocalUnicast() { // such an address is a neighbour's, whatever the subnets
		return false
	}
	for _, subnet := range m.subnets {
		if subnet.Contains(remote) {
			return false
		}
	}
	return true
}
