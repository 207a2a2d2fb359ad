package normal_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/proxy/normal"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// TestPaths holds the forms of each path of testdata/paths.txt: as it is sent, as it goes on, and where it has other
// readings, those.
func TestPaths(t *testing.T) {
	const file = "testdata/paths.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	rows := 0
	for _, line := range strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n") {
		sent := strings.TrimSpace(line)
		if sent, _, _ = strings.Cut(sent, " "); sent == "" || sent == "#" {
			out.WriteString(line + "\n")
			continue
		}
		rows++
		path, ok := normal.Path(nil, []byte(sent))
		if !ok {
			fmt.Fprintf(&out, "%-36s refused\n", sent)
			continue
		}
		fmt.Fprintf(&out, "%-36s %-24s", sent, path)
		path, _, _ = bytes.Cut(path, []byte("?"))
		if normal.Ambiguous(path) {
			first, second := normal.Fold(nil, path, true), normal.Fold(nil, path, false)
			fmt.Fprintf(&out, " %q", first)
			if !bytes.Equal(first, second) {
				fmt.Fprintf(&out, " %q", second)
			}
		}
		out.WriteString("\n")
	}
	if rows < 150 {
		t.Errorf("%d rows, want at least 150", rows)
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(raw), out.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// Every escape of one byte: those of unreserved characters are decoded, the others stay as they are sent
// (RFC 3986 section 6.2.2.2), and 0 is refused.
func TestEscapes(t *testing.T) {
	for c := range 256 {
		for _, format := range []string{"/admin%%%02x", "/admin%%%02X"} {
			sent := fmt.Sprintf(format, c)
			want := sent
			if c < 0x80 && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~", rune(c)) {
				want = "/admin" + string(rune(c))
			}
			got, ok := normal.Path(nil, []byte(sent))
			if ok != (c != 0) || ok && string(got) != want {
				t.Errorf("%s is %s, %v; want %s", sent, got, ok, want)
			}
		}
	}
}

// A normal form is its own, and what was normal is not copied.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b?c=..", "/%2e%2E/", "/a%2f..%5C", `/\..\a`, "/%c0%ae%252e;/", "*"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, target []byte) {
		if len(target) == 0 || target[0] != '/' {
			return
		}
		path, ok := normal.Path(nil, target)
		if !ok {
			return
		}
		again, ok := normal.Path(nil, path)
		if !ok || !bytes.Equal(again, path) || path[0] != '/' {
			t.Errorf("%q is %q, and that is %q", target, path, again)
		}
		path, _, _ = bytes.Cut(path, []byte("?"))
		for _, first := range []bool{true, false} {
			folded := normal.Fold(nil, path, first)
			if len(folded) == 0 || folded[0] != '/' || bytes.Contains(folded, []byte("//")) || bytes.Contains(folded, []byte("/../")) && first {
				t.Errorf("%q is folded to %q", path, folded)
			}
			if !normal.Ambiguous(path) && !bytes.Equal(folded, path) {
				t.Errorf("%q has a reading %q that nobody asks for", path, folded)
			}
		}
	})
}

func TestHost(t *testing.T) {
	for sent, want := range map[string]string{
		"a.example": "a.example 0", "A.Example": "a.example 0", "a.example.": "a.example 0", "a.example..": "a.example 0", "a.example:80": "a.example 80",
		"A.EXAMPLE.:0080": "a.example 80", "a.example:": "a.example 0", "a.example:0": "a.example 0", "a.example:65535": "a.example 65535",
		"a.exa%6Dple": "a.example 0", "a%2Eexample": "a.example 0", "a%252eexample:8080": "a.example 8080", "10.0.0.1:80": "10.0.0.1 80",
		"[::1]": "[::1] 0", "[::1]:80": "[::1] 80", "[0:0::0001]:80": "[::1] 80", "[2001:DB8::A]": "[2001:db8::a] 0", "[::ffff:10.0.0.1]": "[::ffff:10.0.0.1] 0",
		"[zz]:1": "[zz] 1", "": " 0", "reviews": "reviews 0", "xn--bcher-kva.example": "xn--bcher-kva.example 0",
	} {
		name, port := normal.Host(nil, []byte(sent))
		if got := fmt.Sprint(string(name), " ", port); got != want {
			t.Errorf("%q is %q, want %q", sent, got, want)
		}
	}
}

// Nothing is allocated once there is room.
func TestAllocates(t *testing.T) {
	room, folded := make([]byte, 0, 256), make([]byte, 0, 256)
	for _, s := range []string{"/api/v1/products?a=%2f", "/api/%76%31/../v2//products;a=b/%2f"} {
		target := []byte(s)
		if n := testing.AllocsPerRun(100, func() {
			path, _ := normal.Path(room, target)
			normal.Fold(folded, path, true)
		}); n > 0 {
			t.Errorf("%s: %v allocations", s, n)
		}
	}
}
