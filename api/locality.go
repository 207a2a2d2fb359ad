package api

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"
)

// topologyLabels are those of Kubernetes and Istio for the parts of a locality.
var topologyLabels = []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}

// validateLocalities checks which localities are preferred
// (https://istio.io/latest/docs/reference/config/networking/destination-rule/#LocalityLoadBalancerSetting).
func validateLocalities(ps *Problems, path Path, l *networking.LocalityLoadBalancerSetting) {
	if len(l.GetDistribute()) > 0 && len(l.GetFailover()) > 0 {
		ps.invalid(path, "want only one of distribute and failover")
		return
	}
	var from []string
	for i, d := range l.GetDistribute() {
		at := path.At("distribute", i)
		checkLocality(ps, at.At("from"), d.GetFrom(), true)
		checkOverlap(ps, at.At("from"), d.GetFrom(), from)
		from = append(from, d.GetFrom())
		var to []string
		var sum uint32
		for _, name := range sortedKeys(d.GetTo()) {
			weight := d.To[name]
			if weight < 1 || weight > 100 {
				ps.invalid(at.At("to", name), fmt.Sprintf("want a weight between 1 and 100, got %d", weight))
			}
			sum += min(weight, 1000)
			checkLocality(ps, at.At("to", name), name, true)
			checkOverlap(ps, at.At("to", name), name, to)
			to = append(to, name)
		}
		if sum != 100 {
			ps.invalid(at.At("to"), fmt.Sprintf("want weights that add up to 100, got %d", sum))
		}
	}
	for i, f := range l.GetFailover() {
		at := path.At("failover", i)
		for _, end := range []struct{ name, region string }{{"from", f.GetFrom()}, {"to", f.GetTo()}} {
			if end.region == "" || strings.ContainsAny(end.region, "/*") {
				ps.invalid(at.At(end.name), fmt.Sprintf("want a region, got %q", end.region))
			}
		}
		if f.GetFrom() == f.GetTo() {
			ps.invalid(at.At("to"), "want another region than from")
		}
	}
	for i, label := range l.GetFailoverPriority() {
		key, _, _ := strings.Cut(label, "=")
		if key == "" {
			ps.invalid(path.At("failoverPriority", i), fmt.Sprintf("want a label, or label=value, got %q", label))
		}
		if len(l.GetFailover()) > 0 && slices.Contains(topologyLabels, key) {
			ps.invalid(path.At("failoverPriority", i), fmt.Sprintf("want no part of a locality beside failover, got %q", label))
		}
	}
}

// checkLocality wants region, region/zone or region/zone/subzone; of a pattern the last part may be *.
func checkLocality(ps *Problems, path Path, locality string, pattern bool) {
	parts := strings.SplitN(locality, "/", 3)
	for i, part := range parts {
		whatever := pattern && part == "*" && i == len(parts)-1
		if part == "" || strings.Contains(part, "*") && !whatever {
			ps.invalid(path, fmt.Sprintf("want a locality, as region/zone/subzone, region/zone or region, got %q", locality))
			return
		}
	}
}

// checkOverlap refuses a pattern that is within one of those before it, or takes one of them in without saying so by a * at
// its end.
func checkOverlap(ps *Problems, path Path, locality string, others []string) {
	trim := func(pattern string) string { return strings.TrimSuffix(strings.TrimSuffix(pattern, "*"), "/") }
	for _, other := range others {
		a, b := trim(locality), trim(other)
		wider := strings.HasPrefix(b, a+"/") && !strings.HasSuffix(locality, "*")
		if b == "" || a == b || strings.HasPrefix(a, b+"/") || wider {
			ps.invalid(path, fmt.Sprintf("want a locality of its own, %q overlaps with %q", locality, other))
			return
		}
	}
}
