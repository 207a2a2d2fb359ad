package citadel

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/composure-mesh/composure/internal/atomicfile"
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

// ledger remembers the newest certificate of each container until it expires. It keeps a file, so that after a
// restart of citadel people still see who holds what; nothing else depends on it.
type ledger struct {
	file string
	log  *slog.Logger

	mu    sync.Mutex
	held  map[string]Issued // by container
	dirty bool
}

// ledgerPeriod is how often the file is brought up to date: a start of many workloads is one write.
const ledgerPeriod = time.Second

func newLedger(file string, log *slog.Logger) *ledger {
	l := &ledger{file: file, log: log, held: map[string]Issued{}}
	var list []Issued
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the list of issued certificates is lost; it fills up again as they are renewed", "error", err)
	}
	for _, i := range list {
		l.held[i.Container] = i
	}
	return l
}

// run writes the file as needed until ctx is done, and a last time then.
func (l *ledger) run(ctx context.Context) error {
	tick := time.NewTicker(ledgerPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if err := l.save(); err != nil {
			l.log.Warn("the list of issued certificates can't be kept", "error", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (l *ledger) save() error {
	l.mu.Lock()
	dirty := l.dirty
	l.dirty = false
	l.mu.Unlock()
	if !dirty {
		return nil
	}
	data, err := json.Marshal(l.list(time.Now()))
	if err != nil {
		return err
	}
	return atomicfile.Write(l.file, data, 0o600)
}

// add records i and forgets what has expired, so that the ledger is as large as a certificate's life has
// containers.
func (l *ledger) add(i Issued, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[i.Container], l.dirty = i, true
	maps.DeleteFunc(l.held, func(_ string, old Issued) bool { return now.After(old.NotAfter) })
}

// list is what is still valid, sorted by role, workload and container.
func (l *ledger) list(now time.Time) []Issued {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := []Issued{}
	for _, i := range l.held {
		if !now.After(i.NotAfter) {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b Issued) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Container, b.Container))
	})
	return list
}
