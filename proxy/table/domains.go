package table

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// domains finds virtual hosts by authority: an exact name wins over a wildcard, a longer wildcard over a shorter one,
// and "*" comes last.
type domains struct {
	exact     map[string]*VirtualHost
	wildcards []wildcard // longest suffix first
	all       *VirtualHost
}

type wildcard struct {
	suffix string // ".example.com"
	host   *VirtualHost
}

func (d *domains) add(domain string, vh *VirtualHost) error {
	if d.exact == nil {
		d.exact = map[string]*VirtualHost{}
	}
	domain = strings.ToLower(domain)
	switch {
	case domain == "*":
		if d.all != nil {
			return fmt.Errorf("domain %q is also in virtual host %s", domain, d.all.Name)
		}
		d.all = vh
	case strings.HasPrefix(domain, "*"):
		d.wildcards = append(d.wildcards, wildcard{domain[1:], vh})
		slices.SortStableFunc(d.wildcards, func(a, b wildcard) int { return cmp.Compare(len(b.suffix), len(a.suffix)) })
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
	for i := range d.wildcards {
		w := &d.wildcards[i]
		if len(host) > len(w.suffix) && string(host[len(host)-len(w.suffix):]) == w.suffix {
			return w.host
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
