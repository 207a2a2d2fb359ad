package compile

import "github.com/composure-mesh/composure/mesh/snapshot"

// Alone is the snapshot for one workload as it is when it is compiled for nobody else.
func Alone(v View, workload string) snapshot.Snapshot {
	x := New(v)
	return x.compile(x.workloads[workload]).Snapshot
}
