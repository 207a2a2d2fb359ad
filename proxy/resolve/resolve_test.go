package resolve

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// zone is a DNS of few names.
type zone struct {
	mu    sync.Mutex
	names map[string]string
	delay time.Duration
	asked int
}

func (z *zone) set(name, addresses string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names[name] = addresses
}

func (z *zone) lookup(ctx context.Context, _, host string) ([]netip.Addr, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(z.delay):
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	var found []netip.Addr
	for _, text := range strings.Fields(z.names[host]) {
		found = append(found, netip.MustParseAddr(text))
	}
	if found == nil {
		return nil, errors.New("no such host")
	}
	return found, nil
}

func resolver(z *zone) *Resolver { return New(z.lookup, slog.New(slog.DiscardHandler)) }

func outside(names ...string) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Workloads: []snapshot.Workload{{Name: "web", Addresses: []string{"10.0.0.2"}}}}
	for _, n := range names {
		s.Workloads = append(s.Workloads, snapshot.Workload{Name: n, Resolve: n, Labels: map[string]string{"of": n}})
		s.Services = append(s.Services, snapshot.Service{Host: n, Endpoints: []string{n}, Subsets: []snapshot.Subset{{Name: "all", Endpoints: []string{n}}}})
	}
	return s
}

func endpoints(s *snapshot.Snapshot, host string) []string {
	for _, svc := range s.Services {
		if svc.Host == host {
			if !slices.Equal(svc.Endpoints, svc.Subsets[0].Endpoints) {
				return []string{"the subset has others"}
			}
			return svc.Endpoints
		}
	}
	return nil
}

func TestFill(t *testing.T) {
	z := &zone{names: map[string]string{
		"a.com": "192.0.2.2 192.0.2.1 192.0.2.1", "b.com": "192.0.2.1 2001:db8::1", "c.com": "10.0.0.2", "d.com": "::ffff:192.0.2.9",
	}}
	s := outside("a.com", "b.com", "c.com", "d.com", "gone.com")
	s.Workloads[2].ResolveFirst = true
	before := *s
	got := resolver(z).Fill(s)
	for host, want := range map[string][]string{
		"a.com":    {"a.com 192.0.2.1", "a.com 192.0.2.2"},
		"b.com":    {"a.com 192.0.2.1"}, // the first of its addresses, which is another's already
		"c.com":    {"web"},             // an address of the mesh is that workload
		"d.com":    {"d.com 192.0.2.9"},
		"gone.com": nil,
	} {
		if diff := cmp.Diff(want, endpoints(got, host)); diff != "" {
			t.Errorf("endpoints of %s (-want +got):\n%s", host, diff)
		}
	}
	for _, w := range got.Workloads {
		if w.Resolve != "" || len(w.Addresses) != 1 {
			t.Errorf("workload %+v", w)
		}
		if strings.HasPrefix(w.Name, "a.com ") && w.Labels["of"] != "a.com" {
			t.Errorf("workload %+v, want the labels of its endpoint", w)
		}
	}
	if diff := cmp.Diff(&before, s); diff != "" {
		t.Errorf("what the planes sent was changed:\n%s", diff)
	}
	plain := &snapshot.Snapshot{Workloads: []snapshot.Workload{{Name: "web"}}}
	if resolver(z).Fill(plain) != plain {
		t.Error("a snapshot without names was copied")
	}
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{names: map[string]string{"a.com": "192.0.2.1"}}
		r := resolver(z)
		s := outside("a.com")
		if got := endpoints(r.Fill(s), "a.com"); !slices.Equal(got, []string{"a.com 192.0.2.1"}) {
			t.Fatalf("at once: %q", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		changes := make(chan []string, 10)
		done := make(chan error)
		go func() { done <- r.Run(ctx, func() { changes <- endpoints(r.Fill(s), "a.com") }) }()
		time.Sleep(10 * refresh)
		if len(changes) != 0 {
			t.Error("it told of a change where there was none")
		}
		z.set("a.com", "192.0.2.2 192.0.2.1")
		time.Sleep(refresh + time.Second)
		if got := <-changes; !slices.Equal(got, []string{"a.com 192.0.2.1", "a.com 192.0.2.2"}) {
			t.Errorf("after a change: %q", got)
		}
		z.set("a.com", "") // what was found stands
		time.Sleep(3 * refresh)
		if got := endpoints(r.Fill(s), "a.com"); len(changes) != 0 || len(got) != 2 {
			t.Errorf("while it can't be resolved: %q", got)
		}
		z.set("a.com", "192.0.2.3")
		time.Sleep(retry + time.Second)
		if got := <-changes; !slices.Equal(got, []string{"a.com 192.0.2.3"}) {
			t.Errorf("when it can be again: %q", got)
		}
		// A name that is not wanted any more is not asked for.
		r.Fill(outside())
		time.Sleep(refresh)
		asked := z.asked
		time.Sleep(10 * refresh)
		if z.asked != asked {
			t.Errorf("asked %d times for nobody", z.asked-asked)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSlowNames: a new snapshot waits for its names for a second at most, and gets them later.
func TestSlowNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{names: map[string]string{"a.com": "192.0.2.1", "b.com": "192.0.2.2"}, delay: 3 * time.Second}
		r := resolver(z)
		s := outside("a.com", "b.com")
		ctx, cancel := context.WithCancel(t.Context())
		changed := make(chan struct{}, 1)
		done := make(chan error)
		go func() { done <- r.Run(ctx, func() { changed <- struct{}{} }) }()
		synctest.Wait()
		began := time.Now()
		if got := endpoints(r.Fill(s), "a.com"); got != nil || time.Since(began) != patience {
			t.Errorf("%q after %s", got, time.Since(began))
		}
		<-changed
		if a, b := endpoints(r.Fill(s), "a.com"), endpoints(r.Fill(s), "b.com"); len(a) != 1 || len(b) != 1 {
			t.Errorf("%q and %q after %s", a, b, time.Since(began))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
