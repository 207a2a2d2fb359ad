package heal

import (
	"slices"
	"sync"
	"time"
)

// Event is something that the healer did, or that it can't repair.
type Event struct {
	Seq       uint64    `json:"seq"` // counts from 1, anew with each keeper
	Time      time.Time `json:"time"`
	Workload  string    `json:"workload"`
	Container string    `json:"container"`
	What      Verb      `json:"what"`
	Why       string    `json:"why"`
	// Result is "done", "failed: <why>", or for what the healer can't repair the command that does.
	Result string `json:"result"`
}

// journalSize is how many events are kept; a reader that is further behind misses the oldest.
const journalSize = 512

// Journal keeps the newest events for those who ask.
type Journal struct {
	mu      sync.Mutex
	last    uint64
	events  []Event
	changed chan struct{}
}

// NewJournal is an empty journal.
func NewJournal() *Journal { return &Journal{changed: make(chan struct{})} }

func (j *Journal) add(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	e.Seq = j.last
	if len(j.events) == journalSize {
		j.events = slices.Delete(j.events, 0, 1)
	}
	j.events = append(j.events, e)
	close(j.changed)
	j.changed = make(chan struct{})
}

// After is the kept events with a higher number than seq, and a channel that is closed when there are more.
func (j *Journal) After(seq uint64) ([]Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, _ := slices.BinarySearchFunc(j.events, seq+1, func(e Event, s uint64) int {
		switch {
		case e.Seq < s:
			return -1
		case e.Seq > s:
			return 1
		}
		return 0
	})
	return slices.Clone(j.events[i:]), j.changed
}
