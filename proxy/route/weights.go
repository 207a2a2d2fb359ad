package route

// Weights are the shares of what is chosen by weight. The zero value has none.
type Weights struct {
	list  []uint32
	total uint64
}

// Add adds a share, for the next index.
func (w *Weights) Add(share uint32) {
	w.list = append(w.list, share)
	w.total += uint64(share)
}

// None reports whether there is nothing to choose: no share is above 0.
func (w *Weights) None() bool { return w.total == 0 }

// Pick chooses an index by weight, of which there must be one. random is uniform in [0, 2^64).
func (w *Weights) Pick(random uint64) int {
	if len(w.list) == 1 {
		return 0
	}
	n := random % w.total
	for i, share := range w.list {
		if n < uint64(share) {
			return i
		}
		n -= uint64(share)
	}
	return len(w.list) - 1
}
