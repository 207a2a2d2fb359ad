package api

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A label of a host name. Compose allows "_" and capitals in a service's name, so they are allowed here.
var hostLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)

// checkHost says what is wrong with a host name without wildcard, or "".
func checkHost(host string) string {
	if host == "" {
		return "want a host name"
	}
	if strings.Contains(host, "*") {
		return fmt.Sprintf("want a host name without wildcard, got %q", host)
	}
	if len(host) > 253 {
		return "want a host name of at most 253 characters"
	}
	for label := range strings.SplitSeq(host, ".") {
		if !hostLabel.MatchString(label) {
			return fmt.Sprintf("want a host name, got %q", host)
		}
	}
	return ""
}

// checkHostOrWildcard allows "*" and "*.suffix" too (istio.io/docs/reference/config/networking/virtual-service).
func checkHostOrWildcard(host string) string {
	if host == "*" {
		return ""
	}
	if suffix, ok := strings.CutPrefix(host, "*."); ok && !strings.Contains(suffix, "*") && checkHost(suffix) == "" {
		return ""
	}
	if strings.Contains(host, "*") {
		return fmt.Sprintf(`want "*", "*.suffix" or a host name, got %q`, host)
	}
	return checkHost(host)
}

// checkGatewayName allows name and namespace/name.
func checkGatewayName(name string) string {
	ns, short, qualified := strings.Cut(name, "/")
	if !qualified {
		ns, short = DefaultNamespace, name
	}
	if checkHost(short) != "" || checkHost(ns) != "" || strings.Contains(ns, ".") {
		return fmt.Sprintf("want mesh, a Gateway's name or namespace/name, got %q", name)
	}
	return ""
}

func checkPort(n uint32) string {
	if n < 1 || n > 65535 {
		return fmt.Sprintf("want a port between 1 and 65535, got %d", n)
	}
	return ""
}

// checkLabels says what is wrong with labels that select workloads.
func checkLabels(ps *Problems, path Path, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key == "" {
			ps.invalid(path, "want a label with a name")
		}
		if strings.Contains(labels[key], "*") {
			ps.invalid(path.At(key), fmt.Sprintf("want a value without wildcard, got %q", labels[key]))
		}
	}
}
