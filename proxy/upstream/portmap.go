package upstream

import (
	"slices"
	"sync"
	"sync/atomic"
)

// portMap maps ports to values for readers that must not wait: a small list, copied on write.
type portMap[V any] struct {
	list atomic.Pointer[[]portEntry[V]]
	mu   sync.Mutex
}

type portEntry[V any] struct {
	port  uint16
	value V
}

// portMapLimit bounds the list: a client that dials every port of a peer must not make each later request
// search thousands of entries. What does not fit is made anew each time.
const portMapLimit = 64

func (m *portMap[V]) get(port uint16) (v V, ok bool) {
	list := m.list.Load()
	if list == nil {
		return v, false
	}
	for i := range *list {
		if e := &(*list)[i]; e.port == port {
			return e.value, true
		}
	}
	return v, false
}

// add stores v unless port has a value already, and returns the one that counts.
func (m *portMap[V]) add(port uint16, v V) V {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.get(port); ok {
		return old
	}
	var list []portEntry[V]
	if p := m.list.Load(); p != nil {
		list = *p
	}
	if len(list) >= portMapLimit {
		return v
	}
	next := slices.Concat(list, []portEntry[V]{{port, v}})
	m.list.Store(&next)
	return v
}
