//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/composure-mesh/composure/sandbox"
)

func TestOptionsFromEnv(t *testing.T) {
	env := map[string]string{
		envInboundPorts:  "22, 9000,",
		envOutboundPorts: "",
		envOutboundCIDRs: "10.1.2.3/8,fd00::/8, 192.0.2.7,2001:db8::1",
	}
	got, err := optionsFromEnv(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	want := sandbox.Options{
		ExcludeInboundPorts: []uint16{22, 9000},
		ExcludeOutboundCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("fd00::/8"),
			netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::1/128"),
		},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestOptionsFromEnvErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"port is no number": {
			map[string]string{envInboundPorts: "22,http"},
			[]string{envInboundPorts, `"http"`, "1 to 65535", "composure.exclude-inbound-ports"},
		},
		"port 0":         {map[string]string{envOutboundPorts: "0"}, []string{envOutboundPorts, `"0"`, "composure.exclude-outbound-ports"}},
		"port too large": {map[string]string{envOutboundPorts: "65536"}, []string{`"65536"`}},
		"network": {
			map[string]string{envOutboundCIDRs: "10.0.0.0/33"},
			[]string{envOutboundCIDRs, `"10.0.0.0/33"`, "10.0.0.0/8", "composure.exclude-outbound-cidrs"},
		},
		"zone":      {map[string]string{envOutboundCIDRs: "fe80::1%eth0"}, []string{`"fe80::1%eth0"`}},
		"mapped":    {map[string]string{envOutboundCIDRs: "::ffff:10.0.0.0/104"}, []string{"::ffff:10.0.0.0/104"}},
		"ours":      {map[string]string{envInboundPorts: "15006"}, []string{"15006", "capture listener"}},
		"all wrong": {map[string]string{envInboundPorts: "a,b", envOutboundPorts: "c"}, []string{`"a"`, `"b"`, `"c"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := optionsFromEnv(func(k string) string { return tc.env[k] })
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// FuzzOptionsFromEnv checks that whatever a label says becomes an error or rules of which each is one line of
// the expected words.
func FuzzOptionsFromEnv(f *testing.F) {
	f.Add("22,80", "10.0.0.0/8,fd00::/8")
	f.Add("-1", "::ffff:1.2.3.4/120")
	f.Add("1\n-A", "fe80::1%\n-A OUTPUT/64")
	f.Fuzz(func(t *testing.T, ports, cidrs string) {
		env := map[string]string{envInboundPorts: ports, envOutboundPorts: ports, envOutboundCIDRs: cidrs}
		o, err := optionsFromEnv(func(k string) string { return env[k] })
		if err != nil {
			return
		}
		o.IPv6 = sandbox.IPv6Capture
		for _, table := range sandbox.Plan(o) {
			for _, r := range table.Rules {
				if strings.Trim(r.Spec, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789! _-.:/") != "" ||
					strings.ContainsAny(r.Spec, "\n%") {
					t.Errorf("rule %q", r)
				}
			}
		}
	})
}
