//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/mesh/labels"
	"github.com/composure-mesh/composure/sandbox"
)

// The variables that inject sets from the labels of the application's service.
const (
	envInboundPorts  = "COMPOSURE_EXCLUDE_INBOUND_PORTS"
	envOutboundPorts = "COMPOSURE_EXCLUDE_OUTBOUND_PORTS"
	envOutboundCIDRs = "COMPOSURE_EXCLUDE_OUTBOUND_CIDRS"
)

// optionsFromEnv reads the exclusions and reports all that is wrong with them.
func optionsFromEnv(getenv func(string) string) (sandbox.Options, error) {
	in, inErr := list(getenv, envInboundPorts, labels.ExcludeInboundPorts, "a port from 1 to 65535", parsePort)
	out, outErr := list(getenv, envOutboundPorts, labels.ExcludeOutboundPorts, "a port from 1 to 65535", parsePort)
	cidrs, cidrErr := list(getenv, envOutboundCIDRs, labels.ExcludeOutboundCIDRs, "a network such as 10.0.0.0/8 or fd00::/8, or an address", parseCIDR)
	if err := errors.Join(inErr, outErr, cidrErr); err != nil {
		return sandbox.Options{}, err
	}
	opts := sandbox.Options{ExcludeInboundPorts: in, ExcludeOutboundPorts: out, ExcludeOutboundCIDRs: cidrs}
	return opts, opts.Validate()
}

// list reads a comma-separated variable; blanks and empty items mean nothing.
func list[T any](getenv func(string) string, env, label, want string, parse func(string) (T, error)) ([]T, error) {
	var values []T
	var errs []error
	for item := range strings.SplitSeq(getenv(env), ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		v, err := parse(item)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %q is not %s (set by the label %s)", env, item, want, label))
			continue
		}
		values = append(values, v)
	}
	return values, errors.Join(errs...)
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

func parseCIDR(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}
