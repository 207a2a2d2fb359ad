package admin

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/mesh"
)

// Namespace is the answer of /namespace: what the proxy's network namespace has besides what is the mesh's own.
type Namespace struct {
	Interfaces []string         `json:"interfaces"` // but the loopback
	Listeners  []netip.AddrPort `json:"listeners"`  // TCP
}

func namespace(w http.ResponseWriter, _ *http.Request) {
	n, err := readNamespace("/proc")
	if err != nil {
		httpx.Error(w, http.StatusInternalServerError, err)
		return
	}
	httpx.JSON(w, n)
}

func readNamespace(procRoot string) (Namespace, error) {
	n := Namespace{Interfaces: []string{}, Listeners: []netip.AddrPort{}}
	interfaces, err := net.Interfaces()
	if err != nil {
		return n, err
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 {
			n.Interfaces = append(n.Interfaces, i.Name)
		}
	}
	for _, file := range []string{"tcp", "tcp6"} {
		sockets, err := os.ReadFile(filepath.Join(procRoot, "net", file))
		if os.IsNotExist(err) { // a kernel without IPv6
			continue
		}
		if err != nil {
			return n, err
		}
		listeners, err := listening(string(sockets))
		if err != nil {
			return n, fmt.Errorf("/proc/net/%s: %w", file, err)
		}
		n.Listeners = append(n.Listeners, listeners...)
	}
	slices.SortFunc(n.Listeners, netip.AddrPort.Compare)
	n.Listeners = slices.Compact(n.Listeners)
	return n, nil
}

var (
	own = []uint16{mesh.PortAdmin, mesh.PortOutbound, mesh.PortInbound, mesh.PortMerged, mesh.PortReady, mesh.PortDNS, mesh.PortMetrics}
	// engineDNS is where the engine's resolver listens in every namespace.
	engineDNS = netip.AddrFrom4([4]byte{127, 0, 0, 11})
)

// listening reads the sockets that listen from /proc/net/tcp or tcp6 (proc_pid_net(5)), but for the mesh's and the engine's.
func listening(sockets string) ([]netip.AddrPort, error) {
	const stateListen = "0A"
	var found []netip.AddrPort
	_, lines, _ := strings.Cut(sockets, "\n")
	for line := range strings.Lines(lines) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			return nil, fmt.Errorf("%d fields in a line, want 8 or more", len(fields))
		}
		if fields[3] != stateListen || fields[7] == strconv.Itoa(mesh.UIDProxy) {
			continue
		}
		at, err := socketAddr(fields[1])
		if err != nil {
			return nil, err
		}
		if !slices.Contains(own, at.Port()) && at.Addr() != engineDNS {
			found = append(found, at)
		}
	}
	return found, nil
}

// socketAddr reads 0100007F:1F90: the address as words in the machine's byte order, which is that of the platforms the
// proxy is built for, little-endian.
func socketAddr(text string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(addr)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("local address %q", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.LittleEndian.Uint32(raw[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("local address %q", text)
	}
	ip, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), uint16(p)), nil
}
