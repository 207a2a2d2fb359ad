//go:build tools

// Package tools pins the runner that sums up what was skipped, and why.
package tools

import _ "gotest.tools/gotestsum"
