//go:build tools

// Package tools pins the Docker Compose v2 that the tests run.
package tools

import _ "github.com/docker/compose/v2/cmd"
