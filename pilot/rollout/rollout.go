// Package rollout carries out Rollouts: it moves the weights of a VirtualService step by step, and back when the new
// version does not do well.
package rollout

import (
	"fmt"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/report"
)

// Phase is how far a Rollout is.
type Phase string

// The phases. The last three are its end: the VirtualService is the user's again.
const (
	Waiting     Phase = "Waiting" // for what it needs to begin
	Progressing Phase = "Progressing"
	Paused      Phase = "Paused"
	Promoted    Phase = "Promoted"   // the canary has everything
	RolledBack  Phase = "RolledBack" // the weights are those from before
	Aborted     Phase = "Aborted"    // the same, by a person's word
)

// Over reports whether nothing more is done.
func (p Phase) Over() bool { return p == Promoted || p == RolledBack || p == Aborted }

// State is the status of a Rollout: all that must survive a restart.
type State struct {
	Phase Phase `json:"phase"`
	// Step counts from 0.
	Step int `json:"step"`
	// Since is when the step began, or was resumed.
	Since time.Time `json:"since,omitzero"`
	// Generation is that of the spec that this is of.
	Generation int64 `json:"observedGeneration"`
	// Weights are those of the rules that take part, from before the rollout.
	Weights []Weights `json:"weights,omitempty"`
	// Base is what the canary had served when the step began.
	Base    report.Traffic `json:"base,omitzero"`
	Message string         `json:"message,omitempty"`
}

// Weights are those of one http rule's two destinations.
type Weights struct {
	Rule   int   `json:"rule"` // its place in spec.http
	Stable int32 `json:"stable"`
	Canary int32 `json:"canary"`
}

// wanted are the weights that the rules should have.
func (s *State) wanted(spec *api.Rollout) []Weights {
	share := int32(0)
	switch s.Phase {
	case Waiting, RolledBack, Aborted:
		return s.Weights
	case Promoted:
		share = 100
	case Progressing, Paused:
		share = spec.Steps[min(s.Step, len(spec.Steps)-1)].Weight
	}
	var out []Weights
	for _, w := range s.Weights {
		out = append(out, Weights{w.Rule, 100 - share, share})
	}
	return out
}

// begin is the first step, from the weights that the rules have.
func begin(generation int64, weights []Weights, now time.Time, seen report.Traffic) State {
	return State{Phase: Progressing, Since: now, Generation: generation, Weights: weights, Base: seen}
}

// resume begins the step anew.
func (s State) resume(now time.Time, seen report.Traffic) State {
	s.Phase, s.Since, s.Base, s.Message = Progressing, now, seen, ""
	return s
}

// advance is what comes of a rollout that progresses, by what the canary has served altogether.
func (s State) advance(spec *api.Rollout, now time.Time, seen report.Traffic) State {
	served, ok := seen.Since(&s.Base)
	if !ok {
		s.Base, s.Since = seen, now
		s.Message = "mixer counts anew: the step begins again"
		return s
	}
	enough := served.Requests >= uint64(spec.MinRequests) //nolint:gosec // api validates that it is positive
	if reason := judge(spec, &served); enough && reason != "" {
		s.Phase = RolledBack
		s.Message = fmt.Sprintf("at %d %%: %s", spec.Steps[s.Step].Weight, reason)
		return s
	}
	s.Message = ""
	if now.Sub(s.Since) < spec.Steps[s.Step].Hold {
		return s
	}
	if !enough {
		s.Message = fmt.Sprintf("the step goes on until %d requests have come", spec.MinRequests)
		return s
	}
	if s.Step == len(spec.Steps)-1 {
		s.Phase, s.Message = Promoted, "all steps went well"
		return s
	}
	s.Step++
	s.Since, s.Base = now, seen
	return s
}

// judge is why the canary does not do well, "" if it does.
func judge(spec *api.Rollout, served *report.Traffic) string {
	if rate := served.SuccessRate(); rate < spec.SuccessRate {
		return fmt.Sprintf("%d of %d requests failed: %.2f %% succeeded, want %g %%", served.Failures, served.Requests, rate, spec.SuccessRate)
	}
	if l := spec.Latency; l != nil {
		took := time.Duration(served.Duration.Quantile(l.Percentile/100) * float64(time.Millisecond))
		if took >= l.Below {
			return fmt.Sprintf("%g %% of the requests took up to %s, want less than %s", l.Percentile, took.Round(time.Millisecond), l.Below)
		}
	}
	return ""
}
