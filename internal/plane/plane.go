// Package plane is what pilot, citadel and mixer are made of: each holds the configuration that people apply, follows
// the keeper's facts, compiles both into its part of every proxy's snapshot, pushes it, and hears what the proxies say
// of it.
package plane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh"
)

// Document is a plane's part of a snapshot, sealed: what it marshals to is what a proxy is sent.
type Document interface {
	// Digest is that of the content; equal ones need not be sent again.
	Digest() string
}

// Incremental is a Document that proxies share with others for the most part, and that can be told as a change.
type Incremental interface {
	Document
	// Line is the document as a line of the stream, in parts that are not to be changed: the whole of it, or what has
	// changed since base, which the proxy has. It is told from nil as a whole, and from itself as no change.
	Line(base Document) ([][]byte, error)
}

// Index is the configuration and the facts at one moment, prepared for compiling many proxies' documents.
type Index interface {
	// Workload is nil if there is none of this name.
	Workload(name string) *mesh.Workload
	// Compile is the document of the workload's proxy, with what in the configuration could not be done. The error is
	// that there is no such workload.
	Compile(workload string) (Document, []analysis.Problem, error)
	// Check is what is questionable about an object of the configuration, CheckAll about all of them.
	Check(*api.Object) []analysis.Problem
	CheckAll() []analysis.Problem
}

// compiled is a plane's own Index, by the type of its documents.
type compiled[D Document] interface {
	Workload(name string) *mesh.Workload
	Compile(workload string) (D, []analysis.Problem, error)
	Check(*api.Object) []analysis.Problem
	CheckAll() []analysis.Problem
}

// IndexOf is x as an Index.
func IndexOf[D Document](x compiled[D]) Index { return index[D]{x} }

type index[D Document] struct{ compiled[D] }

func (x index[D]) own() any { return x.compiled }

func (x index[D]) Compile(workload string) (Document, []analysis.Problem, error) {
	return x.compiled.Compile(workload)
}

// Config is what a Plane is made of.
type Config struct {
	Role         mesh.Role
	Kinds        []*api.Kind
	StoreFile    string
	KeeperSocket string // where the facts come from
	// Index prepares a view for compiling.
	Index func([]*api.Object, mesh.Facts) Index
	// Validate tells what is wrong with an object beyond what its kind says; nil for nothing.
	Validate func(*api.Object) api.Problems
	// Defaults are objects that are always there, and can't be changed.
	Defaults []*api.Object
	// Views are read-only resources that ViewStore holds; most planes have none.
	Views     []apiserver.View
	ViewStore *apiserver.Store
	// Received is called when there are new Facts, once for several in a row; nil for nobody.
	Received func()
	// Changed is told of the configuration whenever it has changed; nil for nobody.
	Changed func([]*api.Object)
	Version string
	Log     *slog.Logger
}

// Changes are gathered until there is none for a while before snapshots are compiled: a file of objects, or the containers
// of a project that starts, become a few pushes instead of one each. Where they come without end, each waits so long at most.
const (
	debounce    = 25 * time.Millisecond
	debounceMax = 250 * time.Millisecond
)

// Plane is the part that all planes share.
type Plane struct {
	cfg    Config
	log    *slog.Logger
	store  *apiserver.Store
	intent *intent
	hub    *hub

	dirty chan struct{} // holds one token while the view is out of date
	told  chan struct{} // holds one token while Received has not been told of the newest facts

	mu    sync.Mutex
	facts *mesh.Facts // nil before the first
}

// New opens the store.
func New(cfg Config) (*Plane, error) {
	store, err := apiserver.Open(cfg.StoreFile)
	if err != nil {
		return nil, err
	}
	if err := seed(store, cfg.Defaults); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &Plane{
		cfg: cfg, log: cfg.Log, store: store, hub: newHub(cfg.Log), dirty: make(chan struct{}, 1), told: make(chan struct{}, 1),
		intent: &intent{kinds: cfg.Kinds, store: store, log: cfg.Log},
	}, nil
}

// Store holds the configuration.
func (p *Plane) Store() *apiserver.Store { return p.store }

// Close closes the store, after Run.
func (p *Plane) Close() error { return p.store.Close() }

// Run works until ctx ends: it follows the facts and the store, and pushes.
func (p *Plane) Run(ctx context.Context) error {
	facts := newFactsClient(p.cfg.KeeperSocket, p.log, p.receive, p.hub.setKeeper)
	return lifecycle.Run(ctx, facts.run, p.watchStore, p.push, p.tell)
}

// receive takes new facts.
func (p *Plane) receive(facts mesh.Facts) {
	p.mu.Lock()
	p.facts = &facts
	p.mu.Unlock()
	p.Touch()
	mark(p.told)
}

// tell tells Received of new facts: beside the proxies, whom it does not keep waiting.
func (p *Plane) tell(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.told:
		}
		if p.cfg.Received != nil {
			p.cfg.Received()
		}
	}
}

// Facts are the newest, nil before the first. Nobody changes them.
func (p *Plane) Facts() *mesh.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.facts
}

// InForce is the index that the proxies' documents are compiled from, nil before there are facts. It is what IndexOf was
// given.
func (p *Plane) InForce() any {
	if i, ok := p.hub.inForce().(interface{ own() any }); ok {
		return i.own()
	}
	return nil
}

// Touch says that what Index goes by has changed: documents are compiled anew.
func (p *Plane) Touch() { mark(p.dirty) }

// mark puts a token into c, if there is none.
func mark(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchStore notices what people apply.
func (p *Plane) watchStore(ctx context.Context) error {
	everything := func(apiserver.Key) bool { return true }
	for {
		watch, _, _, err := p.store.Watch(0, everything)
		if err != nil {
			return fmt.Errorf("watch the store: %w", err)
		}
		p.Touch()
		for open := true; open; {
			select {
			case <-ctx.Done():
				watch.Stop()
				return nil
			case _, open = <-watch.Events():
				p.Touch()
			}
		}
		if !errors.Is(watch.Err(), apiserver.ErrSlow) {
			return fmt.Errorf("watch the store: %w", watch.Err())
		}
	}
}

// push takes a new view into force whenever something has changed.
func (p *Plane) push(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.dirty:
		}
		if !p.gather(ctx) {
			return nil
		}
		if p.cfg.Changed != nil {
			objects, _ := p.intent.load()
			p.cfg.Changed(objects)
		}
		if index, facts, revision := p.view(); index != nil {
			p.hub.update(index, facts, revision)
		}
	}
}

// gather waits until nothing changes any more. What comes after it makes the view dirty again. False is that ctx has ended.
func (p *Plane) gather(ctx context.Context) bool {
	most := time.After(debounceMax)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-most:
			return true
		case <-time.After(debounce):
			return true
		case <-p.dirty:
		}
	}
}

// Index is the configuration and the facts as they are now; false before there are facts.
func (p *Plane) Index() (Index, bool) {
	x, _, _ := p.view()
	return x, x != nil
}

// view is the present one, nil before there are facts; with the extra objects in the places of the stored ones of their names.
func (p *Plane) view(extra ...*api.Object) (Index, *mesh.Facts, uint64) {
	facts := p.Facts()
	if facts == nil {
		return nil, nil, 0
	}
	objects, revision := p.intent.load()
	if len(extra) > 0 {
		objects = replaced(objects, extra)
	}
	return p.cfg.Index(objects, *facts), facts, revision
}

// replaced are objects with the extra ones in the places of those of their names, whose age they get. Others are new.
func replaced(objects, extra []*api.Object) []*api.Object {
	type key struct {
		kind            *api.Kind
		namespace, name string
	}
	at := make(map[key]*api.Object, len(extra))
	for _, o := range extra {
		at[key{o.Kind, o.Meta.Namespace, o.Meta.Name}] = o
		if o.Meta.CreationTimestamp.IsZero() {
			o.Meta.CreationTimestamp.Time = time.Now()
		}
	}
	all := slices.Collect(maps.Values(at))
	for _, o := range objects {
		if with := at[key{o.Kind, o.Meta.Namespace, o.Meta.Name}]; with != nil {
			with.Meta.CreationTimestamp, with.Meta.UID = o.Meta.CreationTimestamp, o.Meta.UID
		} else {
			all = append(all, o)
		}
	}
	return all
}

// warnings are what is questionable about o, which is stored or about to be.
func (p *Plane) warnings(o *api.Object) []string {
	copied := *o
	index, _, _ := p.view(&copied)
	if index == nil {
		return []string{"there are no facts of the keeper's yet: the object was not checked against what runs"}
	}
	var texts []string
	for _, problem := range index.Check(&copied) {
		texts = append(texts, problem.String())
	}
	return texts
}
