//go:build !race

package forward_test

const raced = false
