package api

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

// A label of a host name. Compose allows "_" and capitals in a service's name, so they are allowed here.
var hostLabel = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

// A label of what is no service's name: a namespace, a subset, a port.
var dnsLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// isName reports whether name is labels with dots between them.
func isName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if !hostLabel.MatchString(label) {
			return false
		}
	}
	return len(name) <= 253
}

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

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
	last := host[strings.LastIndexByte(host, '.')+1:]
	if _, err := strconv.ParseUint(last, 10, 64); !isName(host) || err == nil && last != host { // a number is the end of an address
		return fmt.Sprintf("want a host name, got %q", host)
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
	if !dnsLabel.MatchString(ns) || qualified && !dnsLabel.MatchString(short) || !isName(short) {
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

// checkSelectorLabels says what is wrong with labels that select workloads.
func checkSelectorLabels(ps *Problems, path Path, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		switch {
		case key == "":
			ps.invalid(path, "want a label with a name")
		case strings.Contains(key, "*"):
			ps.invalid(path.At(key), "want a name without wildcard")
		}
		if strings.Contains(labels[key], "*") {
			ps.invalid(path.At(key), fmt.Sprintf("want a value without wildcard, got %q", labels[key]))
		}
	}
}

// checkLabels says what is wrong with labels
// (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set).
func checkLabels(ps *Problems, path Path, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key == "" {
			ps.invalid(path, "want a label with a name")
			continue
		}
		if len(content.IsLabelKey(key)) > 0 {
			ps.invalid(path.At(key), "want a label's name: letters, digits, -, _ and ., after a domain and a / or without")
		}
		if len(content.IsLabelValue(labels[key])) > 0 {
			ps.invalid(path.At(key), fmt.Sprintf("want a label's value of at most 63 letters, digits, -, _ and ., the first and the last a letter or digit, got %q", labels[key]))
		}
	}
}
