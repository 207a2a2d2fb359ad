package api

import (
	"fmt"
	"reflect"
	"time"
)

// PolicyGroup is the group of the mesh's own policies, which mixer holds.
const PolicyGroup = "policy.composure.dev"

// RateLimitSpec bounds how many of the selected workloads' requests pass in a window, for each key.
type RateLimitSpec struct {
	// Selector chooses the workloads whose inbound requests are counted; all of the namespace without one, and all of the
	// mesh in the root namespace. A gateway counts what comes to it.
	Selector *LabelSelector `json:"selector"`
	// Match is what requests are counted, a truth value in CEL; all without one.
	Match string `json:"match"`
	// Key is what the counters are told apart by, expressions in CEL; one counter for all without one.
	Key []string `json:"key"`
	// Limit is how many pass in Window. 0 lets nothing pass.
	Limit  int64         `json:"limit"`
	Window time.Duration `json:"window"`
	// Algorithm is how the window is counted.
	Algorithm string `json:"algorithm" enum:"SLIDING_WINDOW,FIXED_WINDOW,TOKEN_BUCKET"`
	// Charge is what one request counts.
	Charge int64 `json:"charge"`
	// Scope LOCAL counts at each proxy, GLOBAL at mixer for all of them.
	Scope string `json:"scope" enum:"LOCAL,GLOBAL"`
	// OnFailure is what proxies do while mixer does not answer: LOCAL counts at each, OPEN lets all pass, CLOSED none.
	OnFailure string `json:"onFailure" enum:"LOCAL,OPEN,CLOSED"`
	// Shadow counts and tells what would be refused, and refuses nothing.
	Shadow bool `json:"shadow"`
}

// LabelSelector chooses workloads that have all the labels.
type LabelSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

// Bounds of a window: counters of shorter ones are not worth their cost, of longer ones would not outlive mixer.
const (
	minRateWindow = 10 * time.Millisecond
	maxRateWindow = 24 * time.Hour
)

// RateLimit is the kind of the mesh's own usage policy.
func RateLimit() *Kind {
	newSpec := func() any {
		return &RateLimitSpec{Algorithm: "SLIDING_WINDOW", Charge: 1, Scope: "LOCAL", OnFailure: "LOCAL"}
	}
	return &Kind{
		Group: PolicyGroup, Versions: []string{"v1alpha1"}, Kind: "RateLimit", Plural: "ratelimits", Singular: "ratelimit",
		ShortNames: []string{"rl"}, Categories: []string{"composure"},
		Columns: []Column{
			{Name: "Limit", Description: "How much passes", Cell: func(o *Object) any {
				s := o.Spec.(*RateLimitSpec)
				return fmt.Sprintf("%d/%s", s.Limit, s.Window)
			}},
			{Name: "Scope", Description: "Who counts", Cell: func(o *Object) any { return o.Spec.(*RateLimitSpec).Scope }},
		},
		decodeSpec: func(spec map[string]any) (any, Problems) {
			s := newSpec()
			ps := decodeStruct(Path{"spec"}, spec, s)
			for _, field := range []string{"limit", "window"} {
				if spec[field] == nil {
					ps.required(Path{"spec", field}, "want how much passes, and in what time, such as limit: 100 and window: 1m")
				}
			}
			if spec["onFailure"] != nil && s.(*RateLimitSpec).Scope != "GLOBAL" {
				ps.invalid(Path{"spec", "onFailure"}, "is for scope GLOBAL: a proxy that counts for itself needs nobody")
			}
			return s, ps
		},
		schema:   func() map[string]any { return structSchema(reflect.TypeFor[RateLimitSpec](), "") },
		validate: validateRateLimit,
	}
}

func validateRateLimit(o *Object) (ps Problems) {
	s := o.Spec.(*RateLimitSpec)
	if s.Selector != nil && len(s.Selector.MatchLabels) == 0 {
		ps.required(Path{"spec", "selector", "matchLabels"}, "want at least one label, or no selector")
	}
	if s.Limit < 0 {
		ps.invalid(Path{"spec", "limit"}, fmt.Sprintf("want 0 or more, got %d", s.Limit))
	}
	if s.Charge < 1 {
		ps.invalid(Path{"spec", "charge"}, fmt.Sprintf("want 1 or more, got %d", s.Charge))
	}
	if s.Window < minRateWindow || s.Window > maxRateWindow {
		ps.invalid(Path{"spec", "window"}, fmt.Sprintf("want %s to %s, got %s", minRateWindow, maxRateWindow, s.Window))
	}
	for i, key := range s.Key {
		if key == "" {
			ps.required(Path{"spec", "key", i}, `want an expression in CEL, such as request.headers["x-user"]`)
		}
	}
	return ps
}
