package normal

import "net/netip"

// Host appends the name of an authority in its normal form to dst: small letters, without the dot of the root and without
// escapes, an IPv6 address in its shortest form and in brackets. It returns what it appended, and the port, 0 where there is
// none.
func Host(dst, authority []byte) (name []byte, port uint16) {
	n := len(dst)
	host := authority
	for i := len(authority) - 1; i >= 0 && authority[i] != ']'; i-- {
		if authority[i] == ':' {
			host = authority[:i]
			port = number(authority[i+1:])
			break
		}
	}
	if len(host) > 2 && host[0] == '[' {
		if ip, err := netip.ParseAddr(string(host[1 : len(host)-1])); err == nil {
			return append(ip.AppendTo(append(dst, '[')), ']')[n:], port
		}
	}
	dst = unescape(dst, host)
	Lower(dst[:n], dst[n:])
	for len(dst) > n && dst[len(dst)-1] == '.' {
		dst = dst[:len(dst)-1]
	}
	return dst[n:], port
}

// number reads a port that the codecs have found sound; leading zeros mean nothing.
func number(b []byte) uint16 {
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' || n > 65535 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	if n > 65535 {
		return 0
	}
	return uint16(n)
}
