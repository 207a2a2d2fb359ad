package sandbox

import (
	"fmt"
	"strings"
)

// Family is the address family that a table belongs to.
type Family string

// The families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// Rule is one rule: Spec is what follows "-A <chain>", spelled as iptables-save spells it, so that what is
// read back can be compared as text.
type Rule struct {
	Chain string
	Spec  string
}

func (r Rule) String() string { return "-A " + r.Chain + " " + r.Spec }

// Table is what one table of one family must hold: chains that are ours alone, and the jumps to them that stand
// at the top of chains which others use too.
type Table struct {
	Family Family
	Name   string
	Chains []string
	Rules  []Rule
	Jumps  []Rule
}

// Ruleset is a list of tables in the order in which they are to be programmed.
type Ruleset []Table

// String shows the rules in the syntax of iptables-save, IPv4 before IPv6.
func (r Ruleset) String() string {
	var b strings.Builder
	for _, family := range []Family{IPv4, IPv6} {
		first := true
		for _, t := range r {
			if t.Family != family {
				continue
			}
			if first {
				fmt.Fprintf(&b, "# %s\n", family)
				first = false
			}
			b.WriteString(t.restore(nil))
		}
	}
	return b.String()
}

// restore is the input for iptables-restore --noflush that replaces our chains as a whole, takes away the stale
// jumps and inserts ours at the top, in one transaction. Naming a chain empties it; chains that are not named,
// such as Docker's, are left alone.
func (t Table) restore(stale []Rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", t.Name)
	for _, c := range t.Chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	for _, r := range t.Rules {
		fmt.Fprintln(&b, r)
	}
	for _, r := range stale {
		fmt.Fprintf(&b, "-D %s %s\n", r.Chain, r.Spec)
	}
	for _, r := range t.Jumps {
		fmt.Fprintf(&b, "-I %s 1 %s\n", r.Chain, r.Spec)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
