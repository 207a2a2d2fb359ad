package sandbox

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens anew")

func TestPlan(t *testing.T) {
	for name, o := range map[string]Options{
		"default":     {IPv6: IPv6Capture},
		"ipv6-off":    {IPv6: IPv6Off},
		"ipv6-reject": {IPv6: IPv6Reject},
		"exclusions": {
			IPv6:                 IPv6Capture,
			ExcludeInboundPorts:  []uint16{22, 9000},
			ExcludeOutboundPorts: []uint16{25},
			ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("fd00::1/8")},
		},
		"everything-excluded": {IPv6: IPv6Off, ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Plan(o).String()
			file := filepath.Join("testdata", name+".golden")
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// TestPlanIsHarmless checks what must hold of every plan: base chains hold nothing but jumps to chains of ours.
func TestPlanIsHarmless(t *testing.T) {
	for _, table := range Plan(Options{IPv6: IPv6Capture, ExcludeInboundPorts: []uint16{1}, ExcludeOutboundPorts: []uint16{2}}) {
		own := strings.Join(table.Chains, " ")
		for _, r := range table.Rules {
			if !strings.Contains(own, r.Chain) {
				t.Errorf("%s %s: rule %q is in a chain that is not ours", table.Family, table.Name, r)
			}
		}
		for _, r := range table.Jumps {
			if _, target, ok := strings.Cut(r.Spec, " -j "); !ok || !strings.Contains(own, target) {
				t.Errorf("%s %s: %q does not jump to a chain of ours", table.Family, table.Name, r)
			}
		}
	}
}

// TestPlanDoesNotShare checks that exclusions of one plan do not show up in another.
func TestPlanDoesNotShare(t *testing.T) {
	o := Options{ExcludeInboundPorts: make([]uint16, 1, 8), ExcludeOutboundPorts: []uint16{7}}
	o.ExcludeInboundPorts[0] = 5
	first := Plan(o).String()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	if again := Plan(o).String(); again != first {
		t.Error("the second plan differs from the first")
	}
	if got := Plan(Options{}).String(); strings.Contains(got, "--dport 5 ") || strings.Contains(got, "--dport 7 ") {
		t.Errorf("another's exclusion is in the plan:\n%s", got)
	}
}
