package plane

import (
	"fmt"
	"reflect"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
)

func keyOf(o *api.Object) apiserver.Key {
	return apiserver.Key{Resource: o.Kind.Resource(), Namespace: o.Meta.Namespace, Name: o.Meta.Name}
}

// seed puts the defaults of this version into the store, in the place of an older version's.
func seed(store *apiserver.Store, defaults []*api.Object) error {
	for _, o := range defaults {
		_, err := store.Apply(keyOf(o), false, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
			if current != nil && reflect.DeepEqual(current.Object["spec"], o.Content["spec"]) {
				return current, nil
			}
			next := (&unstructured.Unstructured{Object: o.Content}).DeepCopy()
			next.SetUID(uuid.NewUUID())
			next.SetCreationTimestamp(metav1.NewTime(time.Now()))
			next.SetGeneration(1)
			return next, nil
		})
		if err != nil {
			return fmt.Errorf("default %s: %w", o, err)
		}
	}
	return nil
}

// protected tells the defaults from other objects.
func protected(defaults []*api.Object) func(apiserver.Key) bool {
	keys := make(map[apiserver.Key]bool, len(defaults))
	for _, o := range defaults {
		keys[keyOf(o)] = true
	}
	return func(k apiserver.Key) bool { return keys[k] }
}
