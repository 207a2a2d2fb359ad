package apiserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// disk keeps a store's objects in one bbolt file: a bucket of JSON objects under "group/resource/namespace/name",
// whose sequence is the revision. A commit is on disk when it returns.
type disk struct {
	db *bbolt.DB
}

var objectsBucket = []byte("objects")

// lockTimeout is how long Open waits for another process to let go of the file, such as the one that a restart
// replaces.
const lockTimeout = 2 * time.Second

// Open opens the store in file, which it makes if it is missing, mode 0600.
func Open(file string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("store %s: %w", file, err)
	}
	s := NewMemory(0)
	d, err := openDisk(file)
	if err == nil {
		err = d.load(s)
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("store %s: another process holds it: stop that one, two can't share a store", file)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("store %s: %w: it must belong to uid %d", file, err, os.Getuid())
	case errors.Is(err, errCorrupt):
		return nil, fmt.Errorf("store %s: %w: move the file away, restart, and apply your configuration again", file, err)
	default:
		return nil, fmt.Errorf("store %s: %w", file, err)
	}
	s.disk = d
	return s, nil
}

var errCorrupt = errors.New("the file is damaged")

// guarded turns what bbolt does on a damaged file, a panic or a fault in the mapped memory, into an error.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errCorrupt, r)
		}
	}()
	return f()
}

func openDisk(file string) (*disk, error) {
	d := &disk{}
	err := guarded(func() error {
		db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: lockTimeout})
		for _, damage := range []error{bbolterrors.ErrInvalid, bbolterrors.ErrChecksum, bbolterrors.ErrVersionMismatch} {
			if errors.Is(err, damage) {
				return fmt.Errorf("%w: %w", errCorrupt, err)
			}
		}
		d.db = db
		return err
	})
	return d, err
}

func (d *disk) close() error {
	if err := d.db.Close(); err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

func (d *disk) load(s *Store) error {
	return guarded(func() error {
		return d.db.Update(func(tx *bbolt.Tx) error {
			for err := range tx.Check() {
				return fmt.Errorf("%w: %w", errCorrupt, err)
			}
			b, err := tx.CreateBucketIfNotExists(objectsBucket)
			if err != nil {
				return err
			}
			s.revision, s.horizon = b.Sequence(), b.Sequence()
			return b.ForEach(func(k, v []byte) error {
				key, err := decodeKey(k)
				if err != nil {
					return err
				}
				o := &unstructured.Unstructured{}
				dec := json.NewDecoder(bytes.NewReader(v))
				if err := dec.Decode(&o); err != nil {
					return fmt.Errorf("%w: object %s: %w", errCorrupt, k, err)
				}
				s.objects[key] = o
				return nil
			})
		})
	})
}

func (d *disk) commit(events []Event) error {
	if len(events) == 0 {
		return nil
	}
	err := d.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(objectsBucket)
		for _, e := range events {
			if e.Type == watch.Deleted {
				if err := b.Delete(encodeKey(e.Key)); err != nil {
					return err
				}
				continue
			}
			raw, err := e.Object.MarshalJSON()
			if err != nil {
				return err
			}
			if err := b.Put(encodeKey(e.Key), raw); err != nil {
				return err
			}
		}
		return b.SetSequence(events[len(events)-1].Revision)
	})
	if err != nil {
		return fmt.Errorf("write the store: %w", err)
	}
	return nil
}

func encodeKey(k Key) []byte {
	return []byte(strings.Join([]string{k.Resource.Group, k.Resource.Resource, k.Namespace, k.Name}, "/"))
}

func decodeKey(raw []byte) (Key, error) {
	parts := strings.Split(string(raw), "/")
	if len(parts) != 4 {
		return Key{}, fmt.Errorf("%w: key %q", errCorrupt, raw)
	}
	return Key{schema.GroupResource{Group: parts[0], Resource: parts[1]}, parts[2], parts[3]}, nil
}
