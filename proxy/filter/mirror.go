package filter

import "github.com/composure-mesh/composure/mesh/snapshot"

// Mirror is where a copy of a request goes. The Router sends it once it has the whole request, tells nobody what
// became of it, and drops it where too many are under way.
type Mirror struct {
	Service, Subset string
	Port            uint16 // 0: the port that the client dialled
	share           snapshot.Million
}

type mirrors struct {
	next Handler
	list []*Mirror
}

func (b *builder) mirrors(list []snapshot.Mirror) filter {
	if len(list) == 0 {
		return nil
	}
	m := mirrors{}
	for _, s := range list {
		m.list = append(m.list, &Mirror{Service: s.Service, Subset: s.Subset, Port: s.Port, share: s.Share})
	}
	return func(next Handler) Handler { m.next = next; return &m }
}

func (m *mirrors) Serve(x *Exchange) {
	for _, to := range m.list {
		if chance(to.share) {
			x.Mirrors = append(x.Mirrors, to)
		}
	}
	m.next.Serve(x)
}
