package apiserver_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/composure-mesh/composure/internal/apiserver"
)

var things = schema.GroupResource{Group: "g", Resource: "things"}

func key(name string) apiserver.Key {
	return apiserver.Key{Resource: things, Namespace: "default", Name: name}
}

func thing(name string, n int64) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "g/v1", "kind": "Thing", "n": n}}
	u.SetName(name)
	u.SetNamespace("default")
	return u
}

func put(t *testing.T, s *apiserver.Store, name string, n int64) {
	t.Helper()
	_, err := s.Apply(key(name), false, func(*unstructured.Unstructured) (*unstructured.Unstructured, error) { return thing(name, n), nil })
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, s *apiserver.Store, name string) {
	t.Helper()
	_, err := s.Apply(key(name), false, func(*unstructured.Unstructured) (*unstructured.Unstructured, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, file string) *apiserver.Store {
	t.Helper()
	s, err := apiserver.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func names(s *apiserver.Store) []string {
	objects, _ := s.List(things, "")
	var names []string
	for _, o := range objects {
		names = append(names, o.GetName())
	}
	return names
}

// What Apply has returned for is there after a crash: the file is copied as it is, without a close.
func TestStoreSurvivesACrash(t *testing.T) {
	file := filepath.Join(t.TempDir(), "store.db")
	s := open(t, file)
	put(t, s, "a", 1)
	put(t, s, "b", 2)
	put(t, s, "a", 3)
	remove(t, s, "b")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	crashed := filepath.Join(t.TempDir(), "crashed.db")
	if err := os.WriteFile(crashed, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, crashed)
	if diff := cmp.Diff([]string{"a"}, names(again)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if got := again.Get(key("a")); got.Object["n"] != int64(3) || got.GetResourceVersion() != "3" {
		t.Errorf("a is %v, want n 3 at resourceVersion 3", got.Object)
	}
	if got := again.Revision(); got != 4 {
		t.Errorf("revision is %d, want 4: a deletion counts", got)
	}
	put(t, again, "c", 1)
	if got := again.Get(key("c")).GetResourceVersion(); got != "5" {
		t.Errorf("resourceVersion is %s after a restart, want 5", got)
	}
}

func TestStoreDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "store.db")
	s, err := apiserver.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(200) {
		put(t, s, fmt.Sprintf("thing-%d", i), i)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	overwrite := func(from, to int) []byte {
		raw := append([]byte(nil), whole...)
		for i := from; i < min(to, len(raw)); i++ {
			raw[i] = 0xa5
		}
		return raw
	}
	cases := map[string][]byte{
		"no store at all":     []byte(strings.Repeat("hello ", 4000)),
		"both heads":          overwrite(0, 2*page),
		"everything but head": overwrite(2*page, len(whole)),
		"cut":                 whole[:3*page],
	}
	for name, raw := range cases {
		t.Run(name, func(t *testing.T) {
			damaged := filepath.Join(t.TempDir(), "damaged.db")
			if err := os.WriteFile(damaged, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := apiserver.Open(damaged)
			if err == nil {
				_ = s.Close()
				t.Fatal("a damaged file was opened")
			}
			for _, want := range []string{damaged, "move the file away"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want %q in it", err, want)
				}
			}
		})
	}
}

func TestStoreHeld(t *testing.T) {
	file := filepath.Join(t.TempDir(), "store.db")
	open(t, file)
	if _, err := apiserver.Open(file); err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("error is %v, want it to say who holds the file", err)
	}
}

// Writers that compare and swap lose no update.
func TestStoreConcurrentWriters(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	put(t, s, "counter", 0)
	const writers, each = 8, 10
	errConflict := errors.New("conflict")
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				seen := s.Get(key("counter"))
				next := seen.DeepCopy()
				next.Object["n"] = seen.Object["n"].(int64) + 1
				_, err := s.Apply(key("counter"), false, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
					if current.GetResourceVersion() != seen.GetResourceVersion() {
						return nil, errConflict
					}
					return next, nil
				})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, errConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got := s.Get(key("counter"))
	if got.Object["n"] != int64(writers*each) || got.GetResourceVersion() != strconv.Itoa(writers*each+1) {
		t.Errorf("counter is %v, want %d", got.Object, writers*each)
	}
}

func TestStoreChanges(t *testing.T) {
	s := apiserver.NewMemory(100)
	put(t, s, "a", 1)
	o, err := s.Apply(key("a"), true, func(*unstructured.Unstructured) (*unstructured.Unstructured, error) { return thing("a", 9), nil })
	if err != nil || o.Object["n"] != int64(9) {
		t.Errorf("dry run gives %v, %v, want what would have been", o, err)
	}
	_, err = s.Apply(key("a"), false, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) { return current, nil })
	if err != nil || s.Revision() != 101 || s.Get(key("a")).Object["n"] != int64(1) {
		t.Errorf("a change to nothing and a dry run led to revision %d, %v, %v", s.Revision(), s.Get(key("a")), err)
	}
	if err := s.Replace(things, []*unstructured.Unstructured{thing("a", 1), thing("b", 1)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(things, []*unstructured.Unstructured{thing("b", 1)}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"b"}, names(s)); diff != "" || s.Revision() != 103 {
		t.Errorf("revision is %d, want 103: equal objects stay; objects (-want +got):\n%s", s.Revision(), diff)
	}
}

func everything(apiserver.Key) bool { return true }

func TestWatch(t *testing.T) {
	s := apiserver.NewMemory(0)
	put(t, s, "a", 1)
	put(t, s, "b", 1)
	w, first, revision, err := s.Watch(1, everything)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if len(first) != 1 || first[0].Key != key("b") || revision != 2 {
		t.Errorf("watch from 1 begins with %v at %d, want the event of b at 2", first, revision)
	}
	remove(t, s, "a")
	if e := <-w.Events(); e.Type != "DELETED" || e.Object.GetResourceVersion() != "3" || e.Previous.GetResourceVersion() != "1" {
		t.Errorf("event is %+v, want the deletion at 3", e)
	}
	if _, _, _, err := s.Watch(99, everything); !errors.Is(err, apiserver.ErrExpired) {
		t.Errorf("watch from the future: %v, want ErrExpired", err)
	}
	for i := range int64(2000) {
		put(t, s, "c", i)
	}
	if _, _, _, err := s.Watch(3, everything); !errors.Is(err, apiserver.ErrExpired) {
		t.Errorf("watch from long ago: %v, want ErrExpired", err)
	}
	// w did not keep up: it gets what was buffered, in order, and then the reason.
	last := "3"
	for e := range w.Events() {
		if rv := e.Object.GetResourceVersion(); len(rv) < len(last) || len(rv) == len(last) && rv <= last {
			t.Fatalf("event at %s behind one at %s", rv, last)
		} else {
			last = rv
		}
	}
	if !errors.Is(w.Err(), apiserver.ErrSlow) {
		t.Errorf("the watch ended with %v, want ErrSlow", w.Err())
	}
}
