package main

import (
	"fmt"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// plentiful is a limit of each path that no load comes near.
func plentiful(global bool) *snapshot.Usage {
	l := snapshot.RateLimit{
		Name: "ratelimit/default/per-path", Key: []snapshot.RateLimitKey{{Name: "path", Value: text("request.path")}}, Charge: 1,
		Rate: snapshot.Rate{Limit: 1_000_000_000, Window: 60_000, Algorithm: snapshot.SlidingWindow}, Global: global,
	}
	if global {
		l.OnFailure = snapshot.FailLocal
	}
	return &snapshot.Usage{RateLimits: []snapshot.RateLimit{l}}
}

// mixerRules are n rules that deny other paths than those of the cases.
func mixerRules(n int) *snapshot.Usage {
	u := &snapshot.Usage{}
	for i := range n {
		path := fmt.Sprintf("/denied-%d", i)
		u.Rules = append(u.Rules, snapshot.MixerRule{
			Name: fmt.Sprintf("rule/default/deny-%d", i),
			Match: &snapshot.Expression{Type: snapshot.Bool, Function: "==", Arguments: []snapshot.Expression{
				text("request.path"), {Type: snapshot.String, Constant: &path},
			}},
			Checks: []snapshot.MixerCheck{{Handler: "handler.denier.default", Deny: &snapshot.MixerDeny{Code: 7}}},
		})
	}
	return u
}

func text(attribute string) snapshot.Expression {
	return snapshot.Expression{Type: snapshot.String, Attribute: attribute}
}

// usageCase is the plaintext hop to the application whose proxy has mixer's part of a snapshot, beside the hop that has none.
// No mixer runs, as if it was stopped.
func usageCase(usage *snapshot.Usage) func(*bench) ([]row, error) {
	return func(b *bench) ([]row, error) {
		return b.besideItself(b.wrk(64), "ours, without", func(s *snapshot.Snapshot) { s.Usage = usage })
	}
}
