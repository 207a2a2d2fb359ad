// Package proxyprotocol reads and writes the PROXY protocol, versions 1 and 2
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt): a header at the beginning of a connection, by which a
// proxy says whose connection it is.
package proxyprotocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
)

// Header is what a header says. Both addresses are invalid where it names none: UNKNOWN in version 1, LOCAL or an
// unspecified or unix family in version 2.
type Header struct {
	Source, Destination netip.AddrPort
}

// The versions.
const (
	V1 = 1
	V2 = 2
)

const (
	begin1 = "PROXY "
	begin2 = "\r\n\r\n\x00\r\nQUIT\n"
	max1   = 107 // with CRLF, section 2.1
	head2  = 16
	// MaxSize is the longest header that is read. Version 2 could be of 64 KiB; what servers take is less.
	MaxSize = 4 << 10
)

// Errors of Parse.
var (
	// ErrIncomplete says that more bytes are needed.
	ErrIncomplete = errors.New("proxy protocol: the header is not complete yet")
	// ErrNone says that there is no header.
	ErrNone = errors.New("proxy protocol: the connection does not begin with a header")
)

func broken(format string, args ...any) error { return fmt.Errorf("proxy protocol: "+format, args...) }

// Parse reads the header that b begins with, and says how long it is. It is strict: whatever the specification does not
// allow a sender is an error, after which the connection must be ended.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case prefix(b, begin2):
		return parse2(b)
	case prefix(b, begin1):
		return parse1(b)
	}
	return Header{}, 0, ErrNone
}

// prefix reports whether b begins with p as far as either goes.
func prefix(b []byte, p string) bool {
	n := min(len(b), len(p))
	return string(b[:n]) == p[:n]
}

func parse1(b []byte) (Header, int, error) {
	end := bytes.IndexByte(b[:min(len(b), max1)], '\n')
	switch {
	case end < 0 && len(b) >= max1:
		return Header{}, 0, broken("version 1: want CRLF within %d bytes", max1)
	case end < 0:
		return Header{}, 0, ErrIncomplete
	case end < len(begin1) || b[end-1] != '\r':
		return Header{}, 0, broken("version 1: want CRLF at the end of the line")
	}
	line, n := b[len(begin1):end-1], end+1
	family, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(family) {
	case "UNKNOWN": // whatever follows is to be ignored
		return Header{}, n, nil
	case "TCP4", "TCP6":
	default:
		return Header{}, 0, broken("version 1: want TCP4, TCP6 or UNKNOWN, got %.20q", family)
	}
	var parts [4]string
	fields := bytes.Split(rest, []byte(" "))
	if len(fields) != len(parts) {
		return Header{}, 0, broken("version 1: want two addresses and two ports, each after one space")
	}
	for i, f := range fields {
		parts[i] = string(f)
	}
	var h Header
	for i, to := range []*netip.AddrPort{&h.Source, &h.Destination} {
		ip, err := netip.ParseAddr(parts[i])
		if err != nil || ip.Is4() != (string(family) == "TCP4") || ip.Zone() != "" {
			return Header{}, 0, broken("version 1: want an address of %s, got %.40q", family, parts[i])
		}
		text := parts[2+i]
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || strconv.FormatUint(port, 10) != text {
			return Header{}, 0, broken("version 1: want a port from 0 to 65535, got %.20q", text)
		}
		*to = netip.AddrPortFrom(ip, uint16(port))
	}
	return h.unmapped(), n, nil
}

func parse2(b []byte) (Header, int, error) {
	if len(b) < head2 {
		return Header{}, 0, ErrIncomplete
	}
	command, family, n := b[12], b[13], head2+int(binary.BigEndian.Uint16(b[14:]))
	size := 0
	switch family {
	case 0x00: // unspecified
	case 0x11: // TCP over IPv4
		size = 12
	case 0x21: // TCP over IPv6
		size = 36
	case 0x31: // a unix stream
		size = 216
	default:
		return Header{}, 0, broken("version 2: want a stream over IPv4, IPv6 or a unix socket, got family and transport %#02x", family)
	}
	switch {
	case command != 0x20 && command != 0x21:
		return Header{}, 0, broken("version 2: want version 2 and the command LOCAL or PROXY, got %#02x", command)
	case n > MaxSize:
		return Header{}, 0, broken("version 2: want at most %d bytes, got %d", MaxSize, n)
	case command == 0x20:
		size = 0 // section 2.2: all of it is to be skipped, whatever the family
	case n < head2+size:
		return Header{}, 0, broken("version 2: want %d bytes of addresses, got %d", size, n-head2)
	}
	if len(b) < n {
		return Header{}, 0, ErrIncomplete
	}
	if command == 0x20 {
		return Header{}, n, nil
	}
	a := b[head2:n]
	var h Header
	switch family {
	case 0x11:
		h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a)), binary.BigEndian.Uint16(a[8:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:])), binary.BigEndian.Uint16(a[10:]))
	case 0x21:
		h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(a)), binary.BigEndian.Uint16(a[32:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(a[16:])), binary.BigEndian.Uint16(a[34:]))
	}
	if family == 0x00 {
		return h, n, nil // what follows is of no known form
	}
	if err := vectors(b[:n], head2+size); err != nil {
		return Header{}, 0, err
	}
	return h.unmapped(), n, nil
}

func (h Header) unmapped() Header {
	h.Source = netip.AddrPortFrom(h.Source.Addr().Unmap(), h.Source.Port())
	h.Destination = netip.AddrPortFrom(h.Destination.Addr().Unmap(), h.Destination.Port())
	if !h.Source.Addr().IsValid() {
		return Header{}
	}
	return h
}

const typeCRC32C = 0x03

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// vectors skips the type-length-values that begin at b[at]; a checksum among them must be right (section 2.2.3).
func vectors(b []byte, at int) error {
	for at < len(b) {
		if len(b)-at < 3 {
			return broken("version 2: a TLV is cut short")
		}
		kind, size := b[at], int(binary.BigEndian.Uint16(b[at+1:]))
		at += 3
		if size > len(b)-at {
			return broken("version 2: TLV %#02x is longer than the header", kind)
		}
		if kind == typeCRC32C {
			if size != 4 {
				return broken("version 2: want 4 bytes of checksum, got %d", size)
			}
			sum := crc32.Update(0, castagnoli, b[:at])
			sum = crc32.Update(sum, castagnoli, make([]byte, 4))
			sum = crc32.Update(sum, castagnoli, b[at+4:])
			if sum != binary.BigEndian.Uint32(b[at:]) {
				return broken("version 2: the checksum is wrong")
			}
		}
		at += size
	}
	return nil
}

// Append appends a header of a version. One that names no addresses is UNKNOWN or LOCAL.
func Append(dst []byte, version int, h Header) []byte {
	src, to := h.Source, h.Destination
	four := src.Addr().Unmap().Is4() && to.Addr().Unmap().Is4()
	known := src.Addr().IsValid() && to.Addr().IsValid()
	if version == V1 {
		return append1(dst, src, to, known, four)
	}
	dst = append(dst, begin2...)
	switch {
	case !known:
		return append(dst, 0x20, 0x00, 0, 0)
	case four:
		a, b := src.Addr().Unmap().As4(), to.Addr().Unmap().As4()
		dst = append(append(append(dst, 0x21, 0x11, 0, 12), a[:]...), b[:]...)
	default:
		a, b := src.Addr().As16(), to.Addr().As16()
		dst = append(append(append(dst, 0x21, 0x21, 0, 36), a[:]...), b[:]...)
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(dst, src.Port()), to.Port())
}

func append1(dst []byte, src, to netip.AddrPort, known, four bool) []byte {
	dst = append(dst, begin1...)
	if !known {
		return append(dst, "UNKNOWN\r\n"...)
	}
	family := "TCP6 "
	if four {
		family = "TCP4 "
	}
	dst = append(dst, family...)
	for _, a := range []netip.Addr{src.Addr(), to.Addr()} {
		if four {
			a = a.Unmap()
		} else {
			a = netip.AddrFrom16(a.As16()) // both are of one family, and have no zone
		}
		dst = append(a.AppendTo(dst), ' ')
	}
	dst = append(strconv.AppendUint(dst, uint64(src.Port()), 10), ' ')
	return append(strconv.AppendUint(dst, uint64(to.Port()), 10), "\r\n"...)
}
