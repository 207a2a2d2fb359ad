package proxyprotocol

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
)

const four = "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x30\x39\x01\xbb"

// tlvs is a header over IPv4 with more after the addresses.
func tlvs(more string) string {
	b := []byte(begin2 + "\x21\x11\x00\x00" + four[4:] + more)
	binary.BigEndian.PutUint16(b[14:], uint16(len(b)-head2))
	return string(b)
}

// checked is tlvs with a checksum first, which the specification allows anywhere.
func checked(more string, off uint32) string {
	b := []byte(tlvs("\x03\x00\x04\x00\x00\x00\x00" + more))
	binary.BigEndian.PutUint32(b[head2+12+3:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))+off)
	return string(b)
}

var cases = []struct {
	name, in, src, dst string // src is empty where the header names nobody
	err                string // part of it
}{
	{"v1", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", "192.0.2.1:12345", "198.51.100.2:443", ""},
	{"v1 of IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", "[2001:db8::1]:1", "[2001:db8::2]:65535", ""},
	{"v1 mapped", "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n", "192.0.2.1:1", "192.0.2.2:2", ""},
	{"v1 port 0", "PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", "192.0.2.1:0", "198.51.100.2:0", ""},
	{"v1 unknown", "PROXY UNKNOWN\r\n", "", "", ""},
	{"v1 unknown with more", "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", "", "", ""},
	{"v1 longest", "PROXY UNKNOWN " + strings.Repeat("x", max1-16) + "\r\n", "", "", ""},
	{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("x", max1-15) + "\r\n", "", "", "within 107 bytes"},
	{"v1 endless", "PROXY TCP4 " + strings.Repeat("1", 200), "", "", "within 107 bytes"},
	{"v1 bare LF", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\n", "", "", "want CRLF"},
	{"v1 lower case", "proxy TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", "", "", "does not begin"},
	{"v1 family", "PROXY TCP5 192.0.2.1 198.51.100.2 12345 443\r\n", "", "", "want TCP4"},
	{"v1 no family", "PROXY \r\n", "", "", "want TCP4"},
	{"v1 udp", "PROXY UDP4 192.0.2.1 198.51.100.2 12345 443\r\n", "", "", "want TCP4"},
	{"v1 wrong family", "PROXY TCP4 2001:db8::1 198.51.100.2 12345 443\r\n", "", "", "want an address of TCP4"},
	{"v1 leading zero", "PROXY TCP4 192.0.02.1 198.51.100.2 12345 443\r\n", "", "", "want an address"},
	{"v1 zone", "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n", "", "", "want an address"},
	{"v1 two spaces", "PROXY TCP4  192.0.2.1 198.51.100.2 12345 443\r\n", "", "", "one space"},
	{"v1 space at the end", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 443 \r\n", "", "", "one space"},
	{"v1 too few", "PROXY TCP4 192.0.2.1 198.51.100.2 12345\r\n", "", "", "one space"},
	{"v1 port zero-led", "PROXY TCP4 192.0.2.1 198.51.100.2 012 443\r\n", "", "", "want a port"},
	{"v1 port signed", "PROXY TCP4 192.0.2.1 198.51.100.2 +12 443\r\n", "", "", "want a port"},
	{"v1 port too high", "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", "", "", "want a port"},
	{"v1 NUL", "PROXY TCP4 192.0.2.1\x00 198.51.100.2 1 443\r\n", "", "", "want an address"},
	{"v2", begin2 + four, "192.0.2.1:12345", "198.51.100.2:443", ""},
	{"v2 of IPv6", begin2 + "\x21\x21\x00\x24" + strings.Repeat("\x20", 16) + strings.Repeat("\x21", 16) + "\x00\x01\x00\x02",
		"[2020:2020:2020:2020:2020:2020:2020:2020]:1", "[2121:2121:2121:2121:2121:2121:2121:2121]:2", ""},
	{"v2 local", begin2 + "\x20\x00\x00\x00", "", "", ""},
	{"v2 local with addresses", begin2 + "\x20" + four[1:], "", "", ""},
	{"v2 local with rubbish", begin2 + "\x20\x11\x00\x02xx", "", "", ""},
	{"v2 unspecified", begin2 + "\x21\x00\x00\x03abc", "", "", ""},
	{"v2 unix", begin2 + "\x21\x31\x00\xd8" + strings.Repeat("/", 216), "", "", ""},
	{"v2 with TLVs", tlvs("\x01\x00\x02h2\x04\x00\x00"), "192.0.2.1:12345", "198.51.100.2:443", ""},
	{"v2 checked", checked("\x01\x00\x02h2", 0), "192.0.2.1:12345", "198.51.100.2:443", ""},
	{"v2 wrong checksum", checked("\x01\x00\x02h2", 1), "", "", "checksum is wrong"},
	{"v2 short checksum", tlvs("\x03\x00\x03abc"), "", "", "4 bytes of checksum"},
	{"v2 TLV cut", tlvs("\x01\x00"), "", "", "cut short"},
	{"v2 TLV too long", tlvs("\x01\x00\x05abc"), "", "", "longer than the header"},
	{"v2 of version 1", begin2 + "\x11" + four[1:], "", "", "version 2"},
	{"v2 command", begin2 + "\x22" + four[1:], "", "", "LOCAL or PROXY"},
	{"v2 datagram", begin2 + "\x21\x12" + four[2:], "", "", "want a stream"},
	{"v2 family", begin2 + "\x21\x41" + four[2:], "", "", "want a stream"},
	{"v2 too short for IPv4", begin2 + "\x21\x11\x00\x0b" + four[4:15], "", "", "want 12 bytes of addresses"},
	{"v2 too short for IPv6", begin2 + "\x21\x21\x00\x0c" + four[4:], "", "", "want 36 bytes of addresses"},
	{"v2 too long", begin2 + "\x21\x11\xff\xff", "", "", "at most 4096 bytes"},
	{"http", "GET / HTTP/1.1\r\n", "", "", "does not begin"},
	{"post", "POST / HTTP/1.1\r\n", "", "", "does not begin"},
}

func TestParse(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			const next = "GET / HTTP/1.1\r\n"
			h, n, err := Parse([]byte(tt.in + next))
			if tt.err != "" {
				if err == nil || errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("%v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil || n != len(tt.in) {
				t.Fatalf("%d bytes, %v, want %d", n, err, len(tt.in))
			}
			var src, dst netip.AddrPort
			if tt.src != "" {
				src, dst = netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst)
			}
			if h.Source != src || h.Destination != dst {
				t.Errorf("%v, want %v to %v", h, src, dst)
			}
			for i := range len(tt.in) { // however it arrives
				if _, _, err := Parse([]byte(tt.in[:i])); !errors.Is(err, ErrIncomplete) {
					t.Fatalf("the first %d bytes: %v", i, err)
				}
			}
		})
	}
}

func TestAppend(t *testing.T) {
	for _, h := range []Header{
		{},
		{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("198.51.100.2:65535")},
		{netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:2")},
		{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::2]:2")},
	} {
		for _, v := range []int{V1, V2} {
			b := Append(nil, v, h)
			got, n, err := Parse(b)
			if err != nil || n != len(b) || got != h {
				t.Errorf("version %d of %v: %q is %v, %v", v, h, b, got, err)
			}
		}
	}
	zoned := Header{netip.MustParseAddrPort("[fe80::1%eth0]:1"), netip.MustParseAddrPort("[fe80::2%eth0]:2")}
	if got, want := string(Append(nil, V1, zoned)), "PROXY TCP6 fe80::1 fe80::2 1 2\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzParse: no input is read two ways, or read beyond its end.
func FuzzParse(f *testing.F) {
	for _, tt := range cases {
		f.Add([]byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if err != nil {
			if n != 0 || h != (Header{}) && errors.Is(err, ErrIncomplete) {
				t.Fatalf("%v with %d bytes, %v", h, n, err)
			}
			if errors.Is(err, ErrIncomplete) && len(b) >= MaxSize {
				t.Fatalf("more is wanted after %d bytes", len(b))
			}
			return
		}
		if n <= 0 || n > len(b) || n > MaxSize || h.Source.IsValid() != h.Destination.IsValid() {
			t.Fatalf("%v of %d bytes of %d", h, n, len(b))
		}
		if again, m, err := Parse(b[:n]); again != h || m != n || err != nil {
			t.Fatalf("without what follows: %v, %d, %v, want %v, %d", again, m, err, h, n)
		}
		for _, v := range []int{V1, V2} {
			w := Append(nil, v, h)
			if got, m, err := Parse(w); got != h || m != len(w) || err != nil {
				t.Fatalf("%v is written %q, which is %v, %v", h, w, got, err)
			}
		}
	})
}
