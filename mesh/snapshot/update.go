package snapshot

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
)

// Update is one line of pilot's stream: a whole snapshot, or, with a Base, what has changed since that version. It is the
// latter only for a proxy that asks for it: one that names the version it has.
type Update struct {
	// Base is the version that Delta is to be applied to.
	Base  string `json:"base,omitempty"`
	Delta *Delta `json:"delta,omitempty"`
	// Snapshot is the whole, or else has its Version and, where that has changed, its Proxy alone.
	Snapshot
}

// Delta is what turns one snapshot into another.
type Delta struct {
	Workloads    Changes[Workload]    `json:"workloads,omitzero"`
	Services     Changes[Service]     `json:"services,omitzero"`
	VirtualHosts Changes[VirtualHost] `json:"virtualHosts,omitzero"`
	// Rest is all but these lists, Version and Proxy; nil where nothing of it has changed.
	Rest *Snapshot `json:"rest,omitempty"`
}

// Changes are those of a list that is sorted by a key.
type Changes[T any] struct {
	Set  []T      `json:"set,omitempty"`  // new or in the place of what has the same key
	Gone []string `json:"gone,omitempty"` // keys
}

// IsZero reports whether nothing has changed.
func (c Changes[T]) IsZero() bool { return len(c.Set) == 0 && len(c.Gone) == 0 }

func workloadKey(w *Workload) string       { return w.Name }
func serviceKey(s *Service) string         { return s.Host }
func virtualHostKey(h *VirtualHost) string { return h.Name }

// Diff is what turns from into to, versions and proxies apart. It shares what it holds with to.
func Diff(from, to *Snapshot) *Delta {
	d := &Delta{
		Workloads:    changes(from.Workloads, to.Workloads, workloadKey),
		Services:     changes(from.Services, to.Services, serviceKey),
		VirtualHosts: changes(from.VirtualHosts, to.VirtualHosts, virtualHostKey),
	}
	if before, after := from.rest(), to.rest(); !reflect.DeepEqual(before, after) {
		d.Rest = after
	}
	return d
}

// rest is s without what a Delta has lists of changes for, and without what is a proxy's own.
func (s *Snapshot) rest() *Snapshot {
	r := *s
	r.Version, r.Proxy, r.Workloads, r.Services, r.VirtualHosts = "", Workload{}, nil, nil, nil
	return &r
}

func changes[T any](from, to []T, key func(*T) string) (c Changes[T]) {
	for len(from) > 0 || len(to) > 0 {
		var order int
		switch {
		case len(from) == 0:
			order = 1
		case len(to) == 0:
			order = -1
		default:
			order = cmp.Compare(key(&from[0]), key(&to[0]))
		}
		switch {
		case order < 0:
			c.Gone = append(c.Gone, key(&from[0]))
			from = from[1:]
		case order > 0:
			c.Set = append(c.Set, to[0])
			to = to[1:]
		default:
			if !reflect.DeepEqual(from[0], to[0]) {
				c.Set = append(c.Set, to[0])
			}
			from, to = from[1:], to[1:]
		}
	}
	return c
}

// apply is list with the changes done; list stays as it is.
func (c Changes[T]) apply(list []T, key func(*T) string) []T {
	if c.IsZero() {
		return list
	}
	gone := map[string]bool{}
	for _, k := range c.Gone {
		gone[k] = true
	}
	var out []T
	set := c.Set
	for i := range list {
		k := key(&list[i])
		for len(set) > 0 && key(&set[0]) < k {
			out, set = append(out, set[0]), set[1:]
		}
		switch {
		case len(set) > 0 && key(&set[0]) == k:
			out, set = append(out, set[0]), set[1:]
		case !gone[k]:
			out = append(out, list[i])
		}
	}
	return append(out, set...)
}

// Apply is the snapshot that u, decoded from a line, makes of the last one.
func (u *Update) Apply(last *Snapshot) (*Snapshot, error) {
	if u.Base == "" {
		return &u.Snapshot, nil
	}
	if last == nil || last.Version != u.Base {
		return nil, fmt.Errorf("snapshot %s: it is told as a change of %s, which is not here", u.Version, u.Base)
	}
	next := *last
	d := u.Delta
	if d == nil {
		d = &Delta{}
	}
	if d.Rest != nil {
		next = *d.Rest
		next.Proxy = last.Proxy
	}
	next.Workloads = d.Workloads.apply(last.Workloads, workloadKey)
	next.Services = d.Services.apply(last.Services, serviceKey)
	next.VirtualHosts = d.VirtualHosts.apply(last.VirtualHosts, virtualHostKey)
	next.Version = u.Version
	if u.Proxy.Name != "" {
		next.Proxy = u.Proxy
	}
	return &next, nil
}

// Encode is d as the part of a line that proxies share.
func (d *Delta) Encode() ([]byte, error) {
	b, err := json.Marshal(struct {
		Delta *Delta `json:"delta"`
	}{d})
	if err != nil {
		return nil, fmt.Errorf("encode snapshot: %w", err)
	}
	return b, nil
}

// DeltaLine is a line that turns the snapshot of version base into that of version. encoded is of Delta.Encode, nil where
// nothing has changed that proxies share; proxy is nil where it is as it was.
func DeltaLine(version, base string, proxy *Workload, encoded []byte) ([][]byte, error) {
	return line(version, base, proxy, encoded)
}

// line is what is one proxy's own and what is shared, an object, as one object and line. It begins with the version.
func line(version, base string, proxy *Workload, shared []byte) ([][]byte, error) {
	head, err := json.Marshal(struct {
		Version string    `json:"version"`
		Base    string    `json:"base,omitempty"`
		Proxy   *Workload `json:"proxy,omitempty"`
	}{version, base, proxy})
	if err != nil {
		return nil, fmt.Errorf("encode snapshot: %w", err)
	}
	if len(shared) <= 2 { // nothing, or {}
		return [][]byte{append(head, '\n')}, nil
	}
	head[len(head)-1] = ','
	return [][]byte{head, shared[1:], {'\n'}}, nil
}
