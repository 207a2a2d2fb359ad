package listen

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// refreshEvery bounds how often an address that is not known makes Network ask the kernel again.
const refreshEvery = time.Second

// Network knows the addresses of the process's network namespace. The zero value is ready to use.
type Network struct {
	mu    sync.Mutex
	own   map[netip.Addr]bool
	asked time.Time
}

// Has reports whether addr is that of one of our interfaces; loopback's count for nobody from outside. An address
// that has just been added may be unknown for a second.
func (n *Network) Has(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.own[addr] && time.Since(n.asked) >= refreshEvery {
		n.refresh()
	}
	return n.own[addr]
}

func (n *Network) refresh() {
	n.asked = time.Now()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return // what was known stays; the next stranger asks again
	}
	n.own = make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok {
				n.own[ip.Unmap()] = true
			}
		}
	}
}
