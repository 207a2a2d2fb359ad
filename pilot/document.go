package pilot

import (
	"reflect"

	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
)

// index gives plane the documents of compile's Index.
type index struct{ *compile.Index }

func (x index) Compile(workload string) (plane.Document, []analysis.Problem, error) {
	g, err := x.Group(workload)
	if err != nil {
		return nil, nil, err
	}
	d := &document{group: g, proxy: x.Proxy(workload)}
	if d.version, err = g.Shared.Version(&d.proxy); err != nil {
		return nil, nil, err
	}
	return d, g.Problems, nil
}

// document is one proxy's snapshot: what its group shares, and its own.
type document struct {
	group   *compile.Group
	proxy   snapshot.Workload
	version string
}

// Digest is the snapshot's version.
func (d *document) Digest() string { return d.version }

// Line is the snapshot as a line of the stream; what proxies share in it is encoded once for all of them.
func (d *document) Line(from plane.Document) ([][]byte, error) {
	base, ok := from.(*document)
	if !ok {
		return d.group.Shared.Line(d.version, &d.proxy)
	}
	var changed []byte
	if base.group != d.group {
		var err error
		if changed, err = base.group.Change(d.group); err != nil {
			return nil, err
		}
	}
	var proxy *snapshot.Workload
	if !reflect.DeepEqual(base.proxy, d.proxy) {
		proxy = &d.proxy
	}
	return snapshot.DeltaLine(d.version, base.version, proxy, changed)
}
