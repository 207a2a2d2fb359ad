package api

import (
	"fmt"
	"regexp"
)

// QuotaSpecSpec is the spec of a QuotaSpec: which quotas a request asks for
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.mixer.v1.config.client/#QuotaSpec).
type QuotaSpecSpec struct {
	Rules []QuotaRule `json:"rules"`
}

// QuotaRule is one of its rules.
type QuotaRule struct {
	// Match are alternatives; none is every request.
	Match  []AttributeMatch `json:"match"`
	Quotas []QuotaCharge    `json:"quotas"`
}

// AttributeMatch holds where all of its attributes match.
type AttributeMatch struct {
	Clause map[string]AttributeText `json:"clause"`
}

// AttributeText has exactly one field set.
type AttributeText struct {
	Exact  string `json:"exact"`
	Prefix string `json:"prefix"`
	Regex  string `json:"regex"`
}

// QuotaCharge names a quota instance, and what a request counts.
type QuotaCharge struct {
	Quota  string `json:"quota"`
	Charge int64  `json:"charge"`
}

// QuotaSpec is the kind that says which quotas requests ask for.
func QuotaSpec() *Kind {
	k := structKind(Kind{Kind: "QuotaSpec"}, func() any { return &QuotaSpecSpec{} })
	k.validate = func(o *Object) (ps Problems) {
		s := o.Spec.(*QuotaSpecSpec)
		if len(s.Rules) == 0 {
			ps.required(Path{"spec", "rules"}, "want at least one rule")
		}
		for i, r := range s.Rules {
			at := Path{"spec", "rules", i}
			if len(r.Quotas) == 0 {
				ps.required(at.At("quotas"), "want at least one quota")
			}
			for j, q := range r.Quotas {
				checkReference(&ps, at.At("quotas", j, "quota"), q.Quota)
				if q.Charge < 0 {
					ps.invalid(at.At("quotas", j, "charge"), fmt.Sprintf("want 1 or more, got %d", q.Charge))
				}
			}
			for j, m := range r.Match {
				for _, name := range sortedKeys(m.Clause) {
					t := m.Clause[name]
					if n := len(t.Exact) + len(t.Prefix) + len(t.Regex); n == 0 || n != max(len(t.Exact), len(t.Prefix), len(t.Regex)) {
						ps.invalid(at.At("match", j, "clause", name), "want exactly one of exact, prefix and regex")
					}
					if _, err := regexp.Compile(t.Regex); err != nil {
						ps.invalid(at.At("match", j, "clause", name, "regex"), fmt.Sprintf("want a regular expression of RE2: %v", err))
					}
				}
			}
		}
		return ps
	}
	return k
}

// QuotaSpecBindingSpec binds QuotaSpecs to services
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.mixer.v1.config.client/#QuotaSpecBinding).
type QuotaSpecBindingSpec struct {
	Services   []IstioService       `json:"services"`
	QuotaSpecs []QuotaSpecReference `json:"quotaSpecs"`
}

// IstioService names services: by name in a namespace, which is the object's own without one, or fully; service "*" is all.
type IstioService struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Domain    string            `json:"domain"`
	Service   string            `json:"service"`
	Labels    map[string]string `json:"labels"`
}

// QuotaSpecReference names a QuotaSpec, in the object's own namespace without one.
type QuotaSpecReference struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// QuotaSpecBinding is the kind that says for which services' requests.
func QuotaSpecBinding() *Kind {
	k := structKind(Kind{Kind: "QuotaSpecBinding"}, func() any { return &QuotaSpecBindingSpec{} })
	k.validate = func(o *Object) (ps Problems) {
		s := o.Spec.(*QuotaSpecBindingSpec)
		if len(s.Services) == 0 {
			ps.required(Path{"spec", "services"}, "want at least one service")
		}
		for i, svc := range s.Services {
			if (svc.Name == "") == (svc.Service == "") {
				ps.invalid(Path{"spec", "services", i}, "want exactly one of name and service")
			}
		}
		if len(s.QuotaSpecs) == 0 {
			ps.required(Path{"spec", "quotaSpecs"}, "want at least one QuotaSpec")
		}
		for i, q := range s.QuotaSpecs {
			if q.Name == "" {
				ps.required(Path{"spec", "quotaSpecs", i, "name"}, "want the name of a QuotaSpec")
			}
		}
		return ps
	}
	return k
}
