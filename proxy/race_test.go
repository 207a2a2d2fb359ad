//go:build race

package proxy

// raced says that the race detector is on, whose shadow memory counts as the heap's.
const raced = true
