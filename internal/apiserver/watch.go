package apiserver

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apiwatch "k8s.io/apimachinery/pkg/watch"
)

func watchWanted(r *http.Request) bool {
	on, err := strconv.ParseBool(r.URL.Query().Get("watch"))
	return err == nil && on
}

func formatRevision(n uint64) string { return strconv.FormatUint(n, 10) }

// stream is one watch on its way to a client.
type stream struct {
	r       *http.Request
	res     *resource
	version string
	sel     selection
	table   bool
	out     *json.Encoder
	flush   func() error
}

// watch streams events, one JSON document each, from a resourceVersion on; without one, or at 0, it begins with all
// the objects there are. An end that the server brings about is an ERROR event with a Status, as far as the
// stream has begun.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, res *resource, version string, sel selection) error {
	format := negotiate(r)
	if format == formatNone {
		return errNotAcceptable()
	}
	query := r.URL.Query()
	from, err := parseRevision(query.Get("resourceVersion"))
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	initial := query.Get("sendInitialEvents") == "true"
	if initial {
		from = 0
	}
	var timeout <-chan time.Time
	if n, err := strconv.Atoi(query.Get("timeoutSeconds")); err == nil && n > 0 {
		timer := time.NewTimer(time.Duration(n) * time.Second)
		defer timer.Stop()
		timeout = timer.C
	}
	sub, first, revision, err := res.store.Watch(from, func(k Key) bool {
		return k.Resource == res.gr && (sel.namespace == "" || k.Namespace == sel.namespace)
	})
	if err != nil {
		return err
	}
	defer sub.Stop()

	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(http.StatusOK)
	st := &stream{r: r, res: res, version: version, sel: sel, table: format == formatTable, out: json.NewEncoder(w), flush: http.NewResponseController(w).Flush}
	for _, e := range first {
		if err := st.event(e); err != nil {
			return nil // the client went away
		}
	}
	bookmarks := query.Get("allowWatchBookmarks") == "true"
	if initial && bookmarks {
		_ = st.bookmark(revision, true) // st.run notices a client that went away
	}
	st.run(sub, timeout, bookmarks)
	return nil
}

func (st *stream) run(sub *Watch, timeout <-chan time.Time, bookmarks bool) {
	ticker := time.NewTicker(bookmarkInterval)
	defer ticker.Stop()
	for {
		// What is at hand goes out in one piece.
		if len(sub.Events()) == 0 && st.flush() != nil {
			return
		}
		var err error
		select {
		case <-st.r.Context().Done():
			return
		case <-timeout:
			return
		case <-ticker.C:
			// The revision is taken before the events are looked at again: a bookmark never runs ahead of them.
			revision := st.res.store.Revision()
			for len(sub.Events()) > 0 && err == nil {
				if e, ok := <-sub.Events(); ok {
					err = st.event(e)
				}
			}
			if bookmarks && err == nil && sub.Err() == nil { // a watch that was dropped has missed events
				err = st.bookmark(revision, false)
			}
		case e, ok := <-sub.Events():
			if !ok {
				_ = st.write(apiwatch.Error, statusOf(sub.Err()))
				_ = st.flush()
				return
			}
			err = st.event(e)
		}
		if err != nil { // the client went away
			return
		}
	}
}

// event writes e as the client's selection sees it: an object that begins to match is added, one that no longer
// does is deleted.
func (st *stream) event(e Event) error {
	is := e.Type != apiwatch.Deleted && st.sel.matches(e.Object)
	was := st.sel.matches(e.Previous)
	switch {
	case is && was:
		return st.object(apiwatch.Modified, e.Object)
	case is:
		return st.object(apiwatch.Added, e.Object)
	case was:
		gone := e.Previous.DeepCopy()
		gone.SetResourceVersion(formatRevision(e.Revision))
		return st.object(apiwatch.Deleted, gone)
	}
	return nil
}

func (st *stream) object(t apiwatch.EventType, o *unstructured.Unstructured) error {
	o = st.res.as(o, st.version)
	if !st.table {
		return st.write(t, o)
	}
	table, err := makeTable(st.r, st.res, metav1.ListMeta{ResourceVersion: o.GetResourceVersion()}, []*unstructured.Unstructured{o})
	if err != nil {
		return err
	}
	return st.write(t, table)
}

func (st *stream) bookmark(revision uint64, initialEnd bool) error {
	meta := map[string]any{"resourceVersion": formatRevision(revision), "creationTimestamp": nil}
	if initialEnd {
		meta["annotations"] = map[string]any{metav1.InitialEventsAnnotationKey: "true"}
	}
	if st.table {
		return st.write(apiwatch.Bookmark, map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "Table", "metadata": meta, "columnDefinitions": nil, "rows": []any{}})
	}
	return st.write(apiwatch.Bookmark, map[string]any{"apiVersion": st.res.apiVersion(st.version), "kind": st.res.kind, "metadata": meta})
}

func (st *stream) write(t apiwatch.EventType, object any) error {
	return st.out.Encode(map[string]any{"type": t, "object": object})
}
