package upstream

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Each endpoint is named by where it is; a share is of the requests of a workload at eu/a/1. out are those that fail.
func TestLocality(t *testing.T) {
	everywhere := []string{"eu.a.1", "eu/a/2", "eu/b/1", "us/a/1", "asia/a/1"}
	outlier := &snapshot.Outlier{Consecutive5xx: 1, Interval: snapshot.Duration(time.Hour), BaseTime: snapshot.Duration(time.Hour), MaxPercent: 100}
	share := func(from string, to ...snapshot.LocalityShare) *snapshot.Locality {
		return &snapshot.Locality{Distribute: []snapshot.Distribute{{From: from, To: to}}}
	}
	all := map[string]float64{"eu.a.1": .2, "eu/a/2": .2, "eu/b/1": .2, "us/a/1": .2, "asia/a/1": .2}
	for _, c := range []struct {
		name     string
		at       []string
		locality *snapshot.Locality
		healthy  bool // no outlier detection
		out      []string
		want     map[string]float64
	}{
		{"its own subzone", everywhere, nil, false, nil, map[string]float64{"eu.a.1": 1}},
		{"then its zone", everywhere, nil, false, []string{"eu.a.1"}, map[string]float64{"eu/a/2": 1}},
		{"then its region", everywhere, nil, false, []string{"eu.a.1", "eu/a/2"}, map[string]float64{"eu/b/1": 1}},
		{"then the rest", everywhere, nil, false, []string{"eu.a.1", "eu/a/2", "eu/b/1"}, map[string]float64{"us/a/1": .5, "asia/a/1": .5}},
		{"one other region first", everywhere, &snapshot.Locality{Failover: []snapshot.Failover{{From: "us", To: "eu"}, {From: "eu", To: "asia"}}}, false, []string{"eu.a.1", "eu/a/2", "eu/b/1"}, map[string]float64{"asia/a/1": 1}},
		{"what others can't take", []string{"eu/a/1", "eu/a/1", "us/a/1"}, nil, false, []string{"0 eu/a/1"}, map[string]float64{"eu/a/1": .7, "us/a/1": .3}},
		{"turned off", everywhere, &snapshot.Locality{Off: true}, false, nil, all},
		{"nothing fails", everywhere, nil, true, nil, all},
		{"nobody says where", []string{"", ""}, nil, false, nil, map[string]float64{"": 1}},
		{"by weight", everywhere, share("eu/*", snapshot.LocalityShare{Locality: "eu/a/*", Weight: 80}, snapshot.LocalityShare{Locality: "us", Weight: 20}), true, nil, map[string]float64{"eu.a.1": .4, "eu/a/2": .4, "us/a/1": .2}},
		{"by weight of what is there", everywhere, share("eu/a/1", snapshot.LocalityShare{Locality: "mars", Weight: 80}, snapshot.LocalityShare{Locality: "us", Weight: 20}), true, nil, map[string]float64{"us/a/1": 1}},
		{"by weight of what is not out", everywhere, share("*", snapshot.LocalityShare{Locality: "asia", Weight: 80}, snapshot.LocalityShare{Locality: "us", Weight: 20}), false, []string{"asia/a/1"}, map[string]float64{"us/a/1": 1}},
		{"by weight, from elsewhere", everywhere, share("us", snapshot.LocalityShare{Locality: "us", Weight: 100}), true, nil, all},
		{"to nobody", everywhere, share("eu", snapshot.LocalityShare{Locality: "mars", Weight: 100}), true, nil, map[string]float64{}},
		{"by labels", everywhere, &snapshot.Locality{Priority: []string{"tier=gold", "topology.kubernetes.io/region"}}, false, nil, map[string]float64{"us/a/1": 1}},
		{"by labels, the first", everywhere, &snapshot.Locality{Priority: []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone"}}, false, nil, map[string]float64{"eu.a.1": .5, "eu/a/2": .5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var endpoints []*Endpoint
			for i, at := range c.at {
				w := &snapshot.Workload{Name: string(rune('0'+i)) + " " + at, Labels: map[string]string{snapshot.LocalityLabel: at}}
				if at == "us/a/1" {
					w.Labels["tier"] = "gold"
				}
				endpoints = append(endpoints, NewEndpoint(w, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), "", nil))
			}
			policy := snapshot.Policy{Locality: c.locality, Outlier: outlier}
			if c.healthy {
				policy.Outlier = nil
			}
			self := &snapshot.Workload{Labels: map[string]string{snapshot.LocalityLabel: "eu/a/1"}}
			cluster := NewCluster(nil, "", policy, endpoints, nil, self)
			for _, e := range cluster.Endpoints {
				if slices.Contains(c.out, e.Workload.Labels[snapshot.LocalityLabel]) || slices.Contains(c.out, e.Workload.Name) {
					e.Report(500)
				}
			}
			const n = 4000
			got := map[string]float64{}
			for range n {
				if e := cluster.Pick(nil); e != nil {
					got[e.Workload.Labels[snapshot.LocalityLabel]] += 1. / n
				}
			}
			for at, want := range c.want {
				if math.Abs(got[at]-want) > .05 {
					t.Errorf("%q gets %.3f of the requests, want %.2f", at, got[at], want)
				}
			}
			maps.DeleteFunc(got, func(at string, _ float64) bool { return c.want[at] > 0 })
			if len(got) > 0 {
				t.Errorf("others get requests: %v", got)
			}
		})
	}
}
