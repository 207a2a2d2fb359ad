package table

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// domains finds virtual hosts by authority: an exact name wins over a wildcard, a longer wildcard over a shorter one,
// and "*" comes last.
type domains struct {
	exact    map[string]*VirtualHost
	suffixes map[string]*VirtualHost // of wildcards: ".example.com"
	lengths  []int                   // that suffixes have, longest first
	all      *VirtualHost
}

func (d *domains) add(domain string, vh *VirtualHost) error {
	if d.exact == nil {
		d.exact, d.suffixes = map[string]*VirtualHost{}, map[string]*VirtualHost{}
	}
	domain = strings.ToLower(domain)
	switch {
	case domain == "*":
		if d.all != nil {
			return fmt.Errorf("domain %q is also in virtual host %s", domain, d.all.Name)
		}
		d.all = vh
	case strings.HasPrefix(domain, "*"):
		suffix := domain[1:]
		if d.suffixes[suffix] != nil {
			break // the first has it
		}
		d.suffixes[suffix] = vh
		if !slices.Contains(d.lengths, len(suffix)) {
			d.lengths = append(d.lengths, len(suffix))
			slices.SortFunc(d.lengths, func(a, b int) int { return b - a })
		}
	default:
		if old := d.exact[domain]; old != nil {
			return fmt.Errorf("domain %q is also in virtual host %s", domain, old.Name)
		}
		d.exact[domain] = vh
	}
	return nil
}

func (d *domains) lookup(authority []byte) *VirtualHost {
	var buf [256]byte
	host := Hostname(buf[:0], authority)
	if vh := d.exact[string(host)]; vh != nil {
		return vh
	}
	for _, n := range d.lengths {
		if n >= len(host) {
			continue
		}
		if vh := d.suffixes[string(host[len(host)-n:])]; vh != nil {
			return vh
		}
	}
	return d.all
}

// Hostname appends the host of an authority to dst: without port, in lower case, an IPv6 address without brackets.
func Hostname(dst, authority []byte) []byte {
	host := authority
	if len(host) > 0 && host[0] == '[' {
		if i := bytes.IndexByte(host, ']'); i > 0 {
			host = host[1:i]
		}
	} else if i := bytes.IndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	for _, c := range host {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}
