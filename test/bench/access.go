package main

import (
	"fmt"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// accessRules are n rules of which the last allows the requests of the cases: the identities of other callers, and paths of
// an API.
func accessRules(n int) *snapshot.Security {
	rules := make([]snapshot.AccessRule, n)
	for i := range rules {
		rules[i] = snapshot.AccessRule{
			From: []snapshot.AccessSource{{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/caller-%d", i)}}},
			To:   []snapshot.AccessOperation{{Methods: []string{"GET", "HEAD"}, Paths: []string{fmt.Sprintf("/api/v1/things-%d/*", i)}}},
		}
	}
	rules[n-1] = snapshot.AccessRule{To: []snapshot.AccessOperation{{Methods: []string{"GET"}, Paths: []string{"/*"}}}}
	return &snapshot.Security{Access: []snapshot.AccessPolicy{{Namespace: "default", Name: "api", Action: snapshot.AccessAllow, Rules: rules}}}
}

// accessCase is the plaintext hop to the application whose proxy asks n rules, beside the hop that asks none.
func accessCase(n int) func(*bench) ([]row, error) {
	return func(b *bench) ([]row, error) {
		return b.besideItself(b.wrk(64), "ours, without rules", func(s *snapshot.Snapshot) { s.Security = accessRules(n) })
	}
}
