package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// Key names one object.
type Key struct {
	Resource  schema.GroupResource
	Namespace string // empty for an object of no namespace
	Name      string
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Resource.Group, o.Resource.Group), cmp.Compare(k.Resource.Resource, o.Resource.Resource),
		cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// Event is one change of the store. Its objects are shared: nobody changes them.
type Event struct {
	Type     watch.EventType // Added, Modified or Deleted
	Key      Key
	Object   *unstructured.Unstructured // what was deleted, for Deleted, with the revision of its deletion
	Previous *unstructured.Unstructured // nil for Added
	Revision uint64
}

const (
	// history is how many events a watch may lie behind when it begins.
	history = 1024
	// watchBuffer is how many events a watcher may lie behind while it runs.
	watchBuffer = 256
)

// Errors of a watch. The client is to list again.
var (
	ErrExpired = errors.New("the resource version is too old or of another store: list again")
	ErrSlow    = errors.New("the watch fell too far behind: list again")
	ErrClosed  = errors.New("the store is closed")
)

// Store holds objects in memory, and on a disk where it was opened on one. Its revision grows with each change; it
// is the objects' resourceVersion.
type Store struct {
	disk *disk // nil: memory only

	mu       sync.RWMutex
	closed   bool
	revision uint64
	objects  map[Key]*unstructured.Unstructured
	// events are the latest changes; horizon is the revision before the first of them.
	events   []Event
	horizon  uint64
	watchers map[*Watch]bool
}

// NewMemory is a store without a disk. Its revision begins at start: what comes after a restart must lie above
// what was before it.
func NewMemory(start uint64) *Store {
	return &Store{revision: start, horizon: start, objects: map[Key]*unstructured.Unstructured{}, watchers: map[*Watch]bool{}}
}

// Close ends all watches and closes the disk.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for w := range s.watchers {
		s.drop(w, ErrClosed)
	}
	if s.disk == nil {
		return nil
	}
	return s.disk.close()
}

// Get is the object of key, nil if there is none. Nobody changes it.
func (s *Store) Get(key Key) *unstructured.Unstructured {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.objects[key]
}

// List is the objects of a resource, of all namespaces if namespace is empty, by namespace and name, with the
// revision at which this was so.
func (s *Store) List(resource schema.GroupResource, namespace string) ([]*unstructured.Unstructured, uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list(func(k Key) bool {
		return k.Resource == resource && (namespace == "" || k.Namespace == namespace)
	}), s.revision
}

// ListAll is everything there is, with the revision at which this was so.
func (s *Store) ListAll() (map[Key]*unstructured.Unstructured, uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.objects), s.revision
}

func (s *Store) list(match func(Key) bool) []*unstructured.Unstructured {
	var keys []Key
	for k := range s.objects {
		if match(k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, Key.compare)
	objects := make([]*unstructured.Unstructured, len(keys))
	for i, k := range keys {
		objects[i] = s.objects[k]
	}
	return objects
}

// Namespaces are those that objects stand in, sorted.
func (s *Store) Namespaces() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []string
	for k := range s.objects {
		if k.Namespace != "" {
			names = append(names, k.Namespace)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Change decides what becomes of an object: it is given the current one, nil if there is none, which it must not
// change, and returns the next, nil to delete, or current itself to leave everything as it is.
type Change func(current *unstructured.Unstructured) (next *unstructured.Unstructured, err error)

// Apply changes one object, or tells what a dry run would have made of it. Changes come one after another: what a
// Change compares with current has not moved when its result is stored. When Apply returns, the change is on disk.
func (s *Store) Apply(key Key, dryRun bool, change Change) (*unstructured.Unstructured, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	current := s.objects[key]
	next, err := change(current)
	if err != nil || next == current || dryRun {
		if next == nil {
			next = current
		}
		return next, err
	}
	event := makeEvent(key, s.revision+1, current, next)
	if s.disk != nil {
		if err := s.disk.commit([]Event{event}); err != nil {
			return nil, err
		}
	}
	s.publish(event)
	return event.Object, nil
}

// Replace makes objects the only ones of a resource: what is missing is deleted, what is equal stays.
func (s *Store) Replace(resource schema.GroupResource, objects []*unstructured.Unstructured) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	wanted := map[Key]*unstructured.Unstructured{}
	for _, o := range objects {
		wanted[Key{resource, o.GetNamespace(), o.GetName()}] = o
	}
	var events []Event
	revision := s.revision
	add := func(key Key, current, next *unstructured.Unstructured) {
		revision++
		events = append(events, makeEvent(key, revision, current, next))
	}
	for key, current := range s.objects {
		if key.Resource == resource && wanted[key] == nil {
			add(key, current, nil)
		}
	}
	for key, next := range wanted {
		if current := s.objects[key]; current == nil || !sameContent(current, next) {
			add(key, current, next)
		}
	}
	if s.disk != nil {
		if err := s.disk.commit(events); err != nil {
			return err
		}
	}
	for _, e := range events {
		s.publish(e)
	}
	return nil
}

func makeEvent(key Key, revision uint64, current, next *unstructured.Unstructured) Event {
	e := Event{Type: watch.Modified, Key: key, Previous: current, Revision: revision}
	switch {
	case next == nil:
		e.Type, next = watch.Deleted, current
	case current == nil:
		e.Type = watch.Added
	}
	e.Object = next.DeepCopy()
	e.Object.SetResourceVersion(strconv.FormatUint(revision, 10))
	return e
}

// publish makes a committed event visible.
func (s *Store) publish(e Event) {
	s.revision = e.Revision
	if e.Type == watch.Deleted {
		delete(s.objects, e.Key)
	} else {
		s.objects[e.Key] = e.Object
	}
	s.events = append(s.events, e)
	if len(s.events) > history {
		s.horizon = s.events[len(s.events)-history-1].Revision
		s.events = slices.Clone(s.events[len(s.events)-history:])
	}
	for w := range s.watchers {
		s.send(w, e)
	}
}

// Watch is a subscription to the store's events.
type Watch struct {
	store  *Store
	match  func(Key) bool
	events chan Event
	err    error // set before events is closed
}

// Watch subscribes to the events behind revision from whose key matches. At from 0, it begins with an Added event
// for each object there is, at the revision that is returned.
func (s *Store) Watch(from uint64, match func(Key) bool) (*Watch, []Event, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, 0, ErrClosed
	}
	if from != 0 && (from < s.horizon || from > s.revision) {
		return nil, nil, 0, ErrExpired
	}
	var first []Event
	if from == 0 {
		for _, o := range s.list(match) {
			first = append(first, Event{Type: watch.Added, Object: o, Revision: s.revision})
		}
	} else {
		for _, e := range s.events {
			if e.Revision > from && match(e.Key) {
				first = append(first, e)
			}
		}
	}
	w := &Watch{store: s, match: match, events: make(chan Event, watchBuffer)}
	s.watchers[w] = true
	return w, first, s.revision, nil
}

// Events is closed when the watch ends; Err says why.
func (w *Watch) Events() <-chan Event { return w.events }

// Err is why Events was closed.
func (w *Watch) Err() error {
	w.store.mu.RLock()
	defer w.store.mu.RUnlock()
	return w.err
}

// Stop ends the subscription.
func (w *Watch) Stop() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.drop(w, nil)
}

func (s *Store) send(w *Watch, e Event) {
	if !w.match(e.Key) {
		return
	}
	select {
	case w.events <- e:
	default:
		s.drop(w, ErrSlow)
	}
}

func (s *Store) drop(w *Watch, err error) {
	if s.watchers[w] {
		delete(s.watchers, w)
		w.err = err
		close(w.events)
	}
}

// Revision is the latest.
func (s *Store) Revision() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision
}

func parseRevision(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q: want one that this server gave", s)
	}
	return n, nil
}
