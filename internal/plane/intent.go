package plane

import (
	"log/slog"
	"sync"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
)

// intent reads the store's objects as the api's. What was decoded is kept for as long as it stands.
type intent struct {
	kinds []*api.Kind
	store *apiserver.Store
	log   *slog.Logger

	mu   sync.Mutex
	kept map[apiserver.Key]decoded
}

type decoded struct {
	revision string
	object   *api.Object // nil: it does not decode
}

// load is all objects, with the store's revision at which they were so.
func (in *intent) load() ([]*api.Object, uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	all, revision := in.store.ListAll()
	var objects []*api.Object
	kept := make(map[apiserver.Key]decoded, len(all))
	for key, u := range all {
		d := in.kept[key]
		if d.revision != u.GetResourceVersion() {
			o, err := api.Decode(in.kinds, u.DeepCopy().Object)
			if err != nil {
				in.log.Error("a stored object is not valid for this version; it is left out", "resource", key.Resource, "namespace", key.Namespace, "name", key.Name, "error", err)
			}
			d = decoded{u.GetResourceVersion(), o}
		}
		kept[key] = d
		if d.object != nil {
			objects = append(objects, d.object)
		}
	}
	in.kept = kept
	return objects, revision
}
