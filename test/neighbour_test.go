//go:build suites

package test

import (
	"io"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// neighbour runs a command in a container outside the mesh, on a network of a project.
func neighbour(t *testing.T, network string, command ...string) (output string, code int) {
	t.Helper()
	c, err := testcontainers.GenericContainer(t.Context(), testcontainers.GenericContainerRequest{
		ContainerRequest: testcontainers.ContainerRequest{
			Image:      image,
			Networks:   []string{network},
			Cmd:        command,
			WaitingFor: wait.ForExit().WithExitTimeout(time.Minute),
		},
		Started: true,
	})
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatalf("start a neighbour: %v", err)
	}
	logs := must(c.Logs(t.Context()))
	defer logs.Close()
	b := must(io.ReadAll(logs))
	return string(b), must(c.State(t.Context())).ExitCode
}
