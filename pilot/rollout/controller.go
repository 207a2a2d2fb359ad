package rollout

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	networking "istio.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/mesh/report"
)

// Config is what a Controller needs.
type Config struct {
	// Store holds the Rollouts and VirtualServices.
	Store *apiserver.Store
	// Workloads are the names of those of a service that are in a subset; host is as a rule of namespace has it.
	Workloads func(host, subset, namespace string) ([]string, error)
	// Traffic is what the given workloads have served altogether.
	Traffic func(ctx context.Context, workloads []string) (report.Traffic, error)
	Now     func() time.Time
	Log     *slog.Logger
}

// Controller carries out all Rollouts of a store.
type Controller struct {
	cfg Config

	mu sync.Mutex // one step or command at a time
	// known are the rollouts that have been looked at, by resource: of one that is new to this process, the weights are made
	// what they should be; later it is a person who has changed them.
	known map[string]known
}

type known struct {
	spec   *api.Rollout
	state  State
	served report.Traffic // in this step
}

// Errors of commands.
var (
	ErrNotFound = errors.New("there is no such Rollout")
	ErrOver     = errors.New("the rollout is over: apply it with another spec to begin again")
)

// New makes a Controller.
func New(cfg Config) *Controller { return &Controller{cfg: cfg, known: map[string]known{}} }

// period is how often rollouts are looked at: proxies report once a second.
const period = time.Second

// Run carries out the rollouts until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.Step(ctx)
		}
	}
}

var (
	rollouts        = api.RolloutKind()
	virtualServices = api.VirtualService()
)

// Step looks at every rollout once.
func (c *Controller) Step(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	objects, _ := c.cfg.Store.List(rollouts.Resource(), "")
	there := map[string]bool{}
	for _, u := range objects {
		r, err := load(u)
		if err != nil {
			c.cfg.Log.Error("a stored Rollout is not valid for this version; it is left out", "namespace", u.GetNamespace(), "name", u.GetName(), "error", err)
			continue
		}
		there[r.String()] = true
		if err := c.step(ctx, r); err != nil {
			c.cfg.Log.Error("carry out a rollout", "rollout", r.String(), "error", err)
		}
	}
	for name, k := range c.known {
		if there[name] {
			continue
		}
		delete(c.known, name)
		if k.state.Phase == Progressing || k.state.Phase == Paused {
			c.giveBack(name, k)
		}
	}
}

// giveBack restores the weights of a rollout that was deleted before its end.
func (c *Controller) giveBack(name string, k known) {
	_, namespace, _ := strings.Cut(name, "/")
	namespace, _, _ = strings.Cut(namespace, "/")
	if err := c.setWeights(namespace, k.spec, k.state.Weights); err != nil {
		c.cfg.Log.Error("restore the weights from before a rollout that was deleted", "rollout", name, "error", err)
		return
	}
	c.cfg.Log.Info("a rollout was deleted before its end: the weights are those from before", "rollout", name)
}

// loaded is a stored Rollout.
type loaded struct {
	*api.Object
	spec  *api.Rollout
	state State
}

func load(u *unstructured.Unstructured) (*loaded, error) {
	o, err := api.Decode([]*api.Kind{rollouts}, u.DeepCopy().Object)
	if err != nil {
		return nil, err
	}
	r := &loaded{Object: o, spec: o.Spec.(*api.Rollout)}
	if u.Object["status"] == nil {
		return r, nil
	}
	raw, err := json.Marshal(u.Object["status"])
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal(raw, &r.state)
}

func (c *Controller) step(ctx context.Context, r *loaded) error {
	before, fresh := r.state, r.state
	k, seenBefore := c.known[r.String()]
	if r.state.Generation != r.Meta.Generation && !fresh.begun() {
		fresh = State{} // never begun, or over: the new spec begins
	}
	next, served := c.next(ctx, r, fresh, seenBefore)
	if next.Phase.Over() && before.Phase.Over() && before.Generation == next.Generation {
		c.known[r.String()] = known{r.spec, next, k.served}
		return nil
	}
	// At the beginning the weights from before are written down before they are changed. Later the change comes first: it can
	// be done twice.
	begins := !before.begun() && next.begun()
	if begins {
		if err := c.save(r, next); err != nil {
			return err
		}
	}
	if next.Phase != Waiting && next.Phase != Paused {
		if err := c.setWeights(r.Meta.Namespace, r.spec, next.wanted(r.spec)); err != nil {
			return err
		}
	}
	if !begins {
		if err := c.save(r, next); err != nil {
			return err
		}
	}
	c.known[r.String()] = known{r.spec, next, served}
	if next.Phase != before.Phase || next.Step != before.Step {
		c.cfg.Log.Info("rollout", "rollout", r.String(), "phase", next.Phase, "step", next.Step+1, "reason", next.Message)
	}
	return nil
}

// begun reports whether the weights are the rollout's.
func (s *State) begun() bool { return s.Phase == Progressing || s.Phase == Paused }

// next is what becomes of a rollout now, and what the canary has served in the step.
func (c *Controller) next(ctx context.Context, r *loaded, s State, seenBefore bool) (State, report.Traffic) {
	if s.Phase.Over() {
		return s, report.Traffic{}
	}
	if s.begun() && s.Generation != r.Meta.Generation { // goes on by the new spec
		s.Generation, s.Step = r.Meta.Generation, min(s.Step, len(r.spec.Steps)-1)
		seenBefore = false
	}
	have, err := c.weights(r.Meta.Namespace, r.spec)
	if err != nil {
		if s.begun() {
			s.Phase, s.Message = Paused, err.Error()
			return s, report.Traffic{}
		}
		return State{Phase: Waiting, Generation: r.Meta.Generation, Message: err.Error()}, report.Traffic{}
	}
	if s.Phase == Progressing && seenBefore && !slices.Equal(have, s.wanted(r.spec)) {
		s.Phase = Paused
		s.Message = fmt.Sprintf("somebody else has changed the weights of VirtualService %s: resume sets them again, abort restores those from before", r.spec.VirtualService)
		return s, report.Traffic{}
	}
	seen, err := c.seen(ctx, r)
	if err != nil {
		s.Message = err.Error()
		if !s.begun() {
			s = State{Phase: Waiting, Generation: r.Meta.Generation, Message: s.Message}
		}
		return s, report.Traffic{}
	}
	switch s.Phase {
	case Progressing:
		s = s.advance(r.spec, c.cfg.Now(), seen)
	case Paused:
	default:
		s = begin(r.Meta.Generation, have, c.cfg.Now(), seen)
	}
	served, _ := seen.Since(&s.Base) // fallen counts are none
	return s, served
}

// seen is what the canary has served altogether.
func (c *Controller) seen(ctx context.Context, r *loaded) (report.Traffic, error) {
	workloads, err := c.cfg.Workloads(r.spec.Host, r.spec.Canary, r.Meta.Namespace)
	if err != nil {
		return report.Traffic{}, err
	}
	return c.cfg.Traffic(ctx, workloads)
}

// weights are those of the rules that take part in a rollout.
func (c *Controller) weights(namespace string, spec *api.Rollout) ([]Weights, error) {
	u := c.cfg.Store.Get(key(virtualServices, namespace, spec.VirtualService))
	if u == nil {
		return nil, fmt.Errorf("there is no VirtualService %s/%s", namespace, spec.VirtualService)
	}
	o, err := api.Decode([]*api.Kind{virtualServices}, u.DeepCopy().Object)
	if err != nil {
		return nil, err
	}
	var found []Weights
	for i, rule := range o.Spec.(*networking.VirtualService).Http {
		if stable, canary := pair(rule.Route, spec); stable >= 0 && canary >= 0 {
			found = append(found, Weights{i, rule.Route[stable].Weight, rule.Route[canary].Weight})
		}
	}
	if found == nil {
		return nil, fmt.Errorf("VirtualService %s/%s has no http rule with exactly the two destinations %s subset %s and subset %s", namespace, spec.VirtualService, spec.Host, spec.Stable, spec.Canary)
	}
	return found, nil
}

// pair is where a rule's two destinations are; -1 where they are not those of the rollout.
func pair(route []*networking.HTTPRouteDestination, spec *api.Rollout) (stable, canary int) {
	if len(route) != 2 {
		return -1, -1
	}
	at := func(subset string) int {
		return slices.IndexFunc(route, func(d *networking.HTTPRouteDestination) bool {
			return strings.EqualFold(d.GetDestination().GetHost(), spec.Host) && d.GetDestination().GetSubset() == subset
		})
	}
	return at(spec.Stable), at(spec.Canary)
}

func key(kind *api.Kind, namespace, name string) apiserver.Key {
	return apiserver.Key{Resource: kind.Resource(), Namespace: namespace, Name: name}
}

// setWeights writes the weights of rules into the VirtualService.
func (c *Controller) setWeights(namespace string, spec *api.Rollout, weights []Weights) error {
	_, err := c.cfg.Store.Apply(key(virtualServices, namespace, spec.VirtualService), false, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current == nil {
			return nil, fmt.Errorf("there is no VirtualService %s/%s", namespace, spec.VirtualService)
		}
		next := current.DeepCopy()
		rules, _, err := unstructured.NestedSlice(next.Object, "spec", "http")
		if err != nil {
			return nil, err
		}
		changed := false
		for _, w := range weights {
			if w.Rule >= len(rules) {
				continue // it is gone
			}
			route, _, err := unstructured.NestedSlice(rules[w.Rule].(map[string]any), "route")
			if err != nil || len(route) != 2 {
				continue // it is another's by now
			}
			for _, d := range route {
				destination := d.(map[string]any)
				subset, _, err := unstructured.NestedString(destination, "destination", "subset")
				if err != nil {
					return nil, err
				}
				weight := int64(w.Stable)
				if subset == spec.Canary {
					weight = int64(w.Canary)
				} else if subset != spec.Stable {
					continue
				}
				if had, _, err := unstructured.NestedInt64(destination, "weight"); err != nil || had != weight {
					destination["weight"], changed = weight, true
				}
			}
			rules[w.Rule].(map[string]any)["route"] = route
		}
		if !changed {
			return current, nil
		}
		next.SetGeneration(current.GetGeneration() + 1)
		return next, unstructured.SetNestedSlice(next.Object, rules, "spec", "http")
	})
	return err
}

// save writes the status, where it has changed.
func (c *Controller) save(r *loaded, s State) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var status map[string]any
	if status, err = api.ParseJSON(raw); err != nil {
		return err
	}
	_, err = c.cfg.Store.Apply(key(rollouts, r.Meta.Namespace, r.Meta.Name), false, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current == nil {
			return nil, ErrNotFound
		}
		if have, err := json.Marshal(current.Object["status"]); err == nil {
			if want, err := json.Marshal(status); err == nil && string(have) == string(want) {
				return current, nil
			}
		}
		next := current.DeepCopy()
		next.Object["status"] = status
		return next, nil
	})
	return err
}

// Command is what a person asks of a rollout.
type Command string

// The commands.
const (
	Pause   Command = "pause"   // the step goes on without an end
	Resume  Command = "resume"  // the step begins anew
	Promote Command = "promote" // the canary gets everything at once
	Abort   Command = "abort"   // the weights become those from before
)

// Do carries out a command.
func (c *Controller) Do(ctx context.Context, command Command, namespace, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.cfg.Store.Get(key(rollouts, namespace, name))
	if u == nil {
		return ErrNotFound
	}
	r, err := load(u)
	if err != nil {
		return err
	}
	if !r.state.begun() {
		if r.state.Phase.Over() {
			return ErrOver
		}
		return fmt.Errorf("the rollout has not begun: %s", cmp.Or(r.state.Message, "it begins in a second"))
	}
	s := r.state
	switch command {
	case Pause:
		s.Phase, s.Message = Paused, "by command"
	case Resume:
		seen, err := c.seen(ctx, r)
		if err != nil {
			return err
		}
		s = s.resume(c.cfg.Now(), seen)
	case Promote:
		s.Phase, s.Message = Promoted, "by command"
	case Abort:
		s.Phase, s.Message = Aborted, "by command"
	default:
		return fmt.Errorf("command %q: want one of pause, resume, promote, abort", command)
	}
	if s.Phase != Paused {
		if err := c.setWeights(namespace, r.spec, s.wanted(r.spec)); err != nil {
			return err
		}
	}
	if err := c.save(r, s); err != nil {
		return err
	}
	c.known[r.String()] = known{spec: r.spec, state: s}
	c.cfg.Log.Info("rollout", "rollout", r.String(), "phase", s.Phase, "step", s.Step+1, "reason", s.Message)
	return nil
}

// Status is a rollout for people.
type Status struct {
	Resource string `json:"resource"`
	Phase    Phase  `json:"phase"`
	// Step counts from 1; Steps is how many there are.
	Step  int `json:"step"`
	Steps int `json:"steps"`
	// Weight is the canary's share in percent, while the rollout goes on.
	Weight int32     `json:"weight"`
	Since  time.Time `json:"since,omitzero"`
	Hold   string    `json:"hold,omitempty"`
	// Requests are those of the canary in this step.
	Requests    uint64  `json:"requests"`
	Failures    uint64  `json:"failures"`
	SuccessRate float64 `json:"successRate"`
	Message     string  `json:"message,omitempty"`
}

// List is how all rollouts stand.
func (c *Controller) List() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	objects, _ := c.cfg.Store.List(rollouts.Resource(), "")
	list := []Status{}
	for _, u := range objects {
		r, err := load(u)
		if err != nil {
			continue // Step says so
		}
		served := c.known[r.String()].served
		out := Status{
			Resource: r.String(), Phase: cmp.Or(r.state.Phase, Waiting), Step: r.state.Step + 1, Steps: len(r.spec.Steps), Since: r.state.Since,
			Requests: served.Requests, Failures: served.Failures, SuccessRate: served.SuccessRate(), Message: r.state.Message,
		}
		if r.state.begun() && r.state.Step < len(r.spec.Steps) {
			step := r.spec.Steps[r.state.Step]
			out.Weight, out.Hold = step.Weight, step.Hold.String()
		} else if r.state.Phase == Promoted {
			out.Weight = 100
		}
		list = append(list, out)
	}
	return list
}
