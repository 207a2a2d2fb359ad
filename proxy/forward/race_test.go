//go:build race

package forward_test

// raced says that the race detector is on, whose shadow memory counts as the heap's.
const raced = true
