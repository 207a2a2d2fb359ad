package keeper

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/composure-mesh/composure/mesh"
)

// feed holds the newest facts and wakes those who wait for newer ones.
type feed struct {
	mu       sync.Mutex
	revision uint64
	content  []byte // the facts without their revision
	line     []byte // the facts as JSON; nil before the first
	changed  chan struct{}
}

func newFeed() *feed { return &feed{changed: make(chan struct{})} }

// set publishes f if it differs from what is published, and reports whether it did.
func (fd *feed) set(f mesh.Facts) (bool, error) {
	f.Revision = 0
	content, err := json.Marshal(f)
	if err != nil {
		return false, fmt.Errorf("encode facts: %w", err)
	}
	fd.mu.Lock()
	defer fd.mu.Unlock()
	if bytes.Equal(content, fd.content) {
		return false, nil
	}
	f.Revision = fd.revision + 1
	line, err := json.Marshal(f)
	if err != nil {
		return false, fmt.Errorf("encode facts: %w", err)
	}
	fd.revision, fd.content, fd.line = f.Revision, content, line
	close(fd.changed)
	fd.changed = make(chan struct{})
	return true, nil
}

// get is the newest facts as JSON, nil before the first, and a channel that is closed when they are no longer.
func (fd *feed) get() ([]byte, <-chan struct{}) {
	fd.mu.Lock()
	defer fd.mu.Unlock()
	return fd.line, fd.changed
}
