package api

import (
	"fmt"
	"reflect"
	"time"
)

// RolloutGroup is the group of the mesh's own kind of a staged rollout.
const RolloutGroup = "rollout.composure.dev"

// Rollout is the spec of a Rollout: it moves the requests of a VirtualService from one subset of a service to another, step by
// step, as long as those that the new one serves go well.
type Rollout struct {
	// VirtualService is the name of one in the Rollout's namespace. Each of its http rules with exactly the two destinations
	// Stable and Canary takes part; others stay as they are.
	VirtualService string `json:"virtualService"`
	// Host is the service, by a name as a destination's.
	Host string `json:"host"`
	// Stable and Canary are the subsets that requests are moved from and to.
	Stable string `json:"stable"`
	Canary string `json:"canary"`
	// Steps follow each other; after the last the canary gets everything.
	Steps []RolloutStep `json:"steps"`
	// SuccessRate is the share of the canary's requests, in percent, that must not fail: with a status of 500 and above, or a
	// gRPC status that is the server's fault. Default 99.
	SuccessRate float64 `json:"successRate"`
	// Latency bounds how long the canary's requests take; none by default.
	Latency *RolloutLatency `json:"latency"`
	// MinRequests is how many requests of a step there must be before it is judged, and before the next begins. Default 20.
	MinRequests int64 `json:"minRequests"`
}

// RolloutStep is the canary's share, in percent, for a time.
type RolloutStep struct {
	Weight int32         `json:"weight"`
	Hold   time.Duration `json:"hold"`
}

// RolloutLatency asks that a share of the requests, in percent, takes less than a time.
type RolloutLatency struct {
	Percentile float64       `json:"percentile"` // default 99
	Below      time.Duration `json:"below"`
}

// RolloutKind is Rollout, which pilot carries out.
func RolloutKind() *Kind {
	newSpec := func() *Rollout { return &Rollout{SuccessRate: 99, MinRequests: 20} }
	return &Kind{
		Group: RolloutGroup, Versions: []string{"v1alpha1"}, Kind: "Rollout", Plural: "rollouts", Singular: "rollout", ShortNames: []string{"ro"},
		Columns: []Column{
			{Name: "Host", Description: "The service", Cell: func(o *Object) any { return o.Spec.(*Rollout).Host }},
			{Name: "Stable", Description: "The subset that requests are moved from", Cell: func(o *Object) any { return o.Spec.(*Rollout).Stable }},
			{Name: "Canary", Description: "The subset that requests are moved to", Cell: func(o *Object) any { return o.Spec.(*Rollout).Canary }},
		},
		decodeSpec: func(spec map[string]any) (any, Problems) {
			s := newSpec()
			ps := decodeStruct(Path{"spec"}, spec, s)
			if s.Latency != nil && s.Latency.Percentile == 0 {
				s.Latency.Percentile = 99
			}
			return s, ps
		},
		schema:   func() map[string]any { return structSchema(reflect.TypeFor[Rollout](), "") },
		validate: func(o *Object) Problems { return o.Spec.(*Rollout).validate() },
	}
}

func (r *Rollout) validate() (ps Problems) {
	root := Path{"spec"}
	for _, f := range []struct{ name, value, want string }{
		{"virtualService", r.VirtualService, "the name of a VirtualService"},
		{"host", r.Host, "the service whose requests are moved"},
		{"stable", r.Stable, "the subset that requests are moved from"},
		{"canary", r.Canary, "the subset that requests are moved to"},
	} {
		if f.value == "" {
			ps.required(root.At(f.name), "want "+f.want)
		}
	}
	if r.Stable != "" && r.Stable == r.Canary {
		ps.invalid(root.At("canary"), "want another subset than stable")
	}
	if len(r.Steps) == 0 {
		ps.required(root.At("steps"), "want one step at least")
	}
	last := int32(0)
	for i, s := range r.Steps {
		at := root.At("steps").At(i)
		if s.Weight <= last || s.Weight > 100 {
			ps.invalid(at.At("weight"), fmt.Sprintf("want a percentage above that of the step before (%d) and of 100 at most, got %d", last, s.Weight))
		}
		last = s.Weight
		if s.Hold <= 0 {
			ps.invalid(at.At("hold"), fmt.Sprintf("want how long the step lasts, such as 1m, got %s", s.Hold))
		}
	}
	if r.SuccessRate < 0 || r.SuccessRate > 100 {
		ps.invalid(root.At("successRate"), fmt.Sprintf("want a percentage, got %g", r.SuccessRate))
	}
	if r.MinRequests < 1 {
		ps.invalid(root.At("minRequests"), fmt.Sprintf("want 1 or more, got %d", r.MinRequests))
	}
	if l := r.Latency; l != nil {
		if l.Percentile <= 0 || l.Percentile >= 100 {
			ps.invalid(root.At("latency").At("percentile"), fmt.Sprintf("want a percentage between 0 and 100, got %g", l.Percentile))
		}
		if l.Below <= 0 {
			ps.required(root.At("latency").At("below"), "want a duration such as 250ms")
		}
	}
	return ps
}
