//go:build !race

package mixer_test

const raced = false
