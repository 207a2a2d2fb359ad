package citadel

import (
	"cmp"
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

// Issued is a certificate that somebody holds: one line of GET /debug/certs.
type Issued struct {
	Workload  string    `json:"workload,omitempty"`
	Role      mesh.Role `json:"role"`
	Identity  string    `json:"identity"`
	Container string    `json:"container,omitempty"`
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

func newIssued(st attest.Statement, leaf *x509.Certificate) Issued {
	return Issued{
		Workload: st.Workload, Role: st.Role, Identity: st.Identity, Container: st.Container,
		Serial: leaf.SerialNumber.Text(16), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
	}
}

// ledger remembers the newest certificate of each container until it expires.
type ledger struct {
	mu   sync.Mutex
	held map[string]Issued // by container
}

func newLedger() *ledger { return &ledger{held: map[string]Issued{}} }

// add records i and forgets what has expired, so that the ledger is as large as a certificate's life has
// containers.
func (l *ledger) add(i Issued, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[i.Container] = i
	maps.DeleteFunc(l.held, func(_ string, old Issued) bool { return now.After(old.NotAfter) })
}

// list is sorted by role, workload and container.
func (l *ledger) list() []Issued {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Values(l.held), func(a, b Issued) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Container, b.Container))
	})
}
