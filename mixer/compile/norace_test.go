//go:build !race

package compile_test

const raced = false
