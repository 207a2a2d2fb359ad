// Package keeper is the node agent: the only part of a mesh that talks to the Docker engine. It tells pilot what
// runs, and vouches to citadel for the processes that connect to its socket.
package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// Engine is what the keeper asks of a container engine. It reads, and starts and stops what the healer wants to.
type Engine interface {
	// List names the containers, stopped ones too, that carry the label key=value.
	List(ctx context.Context, key, value string) ([]Listed, error)
	// Inspect describes a container, ErrNotFound if there is none.
	Inspect(ctx context.Context, id string) (Container, error)
	// Network describes a network, ErrNotFound if there is none.
	Network(ctx context.Context, id string) (mesh.Network, error)
	// Events calls f for each event, and once with the zero Event as soon as the stream stands, until the
	// stream breaks or ctx is done.
	Events(ctx context.Context, f func(Event)) error
	// Start starts a container; one that runs is no error.
	Start(ctx context.Context, id string) error
	// Restart stops a container and starts it again; nil is the container's own time to stop.
	Restart(ctx context.Context, id string, grace *time.Duration) error
	// Stop stops a container, which its restart policy then leaves alone; one that is stopped is no error.
	Stop(ctx context.Context, id string) error
}

// ErrNotFound is an Engine's answer for what does not exist.
var ErrNotFound = errors.New("not found")

// Listed is a container in a list.
type Listed struct {
	ID     string
	Labels map[string]string
	// Print differs whenever state, health, addresses or published ports do: a container whose print is the same
	// need not be inspected again.
	Print string
}

// Container is what the keeper knows about one container.
type Container struct {
	ID      string
	Name    string // without the leading slash
	Created time.Time
	Labels  map[string]string
	Running bool
	// Health is "", "starting", "healthy" or "unhealthy". A paused container is unhealthy: others of its service get the
	// traffic, and where there are none it waits for the end of the pause, as it does without a mesh.
	Health string
	PID    int // of the main process in the host's namespace, 0 if there is none
	// State is Running in the engine's own words: created, running, paused, restarting, exited, …
	State     string
	Error     string // why the engine could not start it the last time
	StartedAt time.Time
	// RestartPolicy is "no", "on-failure", "unless-stopped" or "always".
	RestartPolicy string
	ExitCode      int    // of the last end
	NetworkOf     string // id of the container whose network namespace this one joins, "" if it has its own
	// StopSignal is the number of the signal that ends the container.
	StopSignal int
	Endpoints  []Endpoint
	// Exposed are TCP ports that image or configuration declare.
	Exposed []uint16
	// Published are TCP ports with the host ports that lead to them, as mesh.Port.Published has them.
	Published map[uint16][]string
}

// Endpoint is a container's place in one network.
type Endpoint struct {
	NetworkID string
	IPv4      string
	IPv6      string
	Aliases   []string
}

// Change is what an event reports, as far as the keeper tells one from another.
type Change int

// The changes.
const (
	Other   Change = iota // something that an inspection shows
	Started               // it runs
	Ended                 // it has ended, however
)

// Event is a change of one container that the engine reports.
type Event struct {
	Container string            // id
	Labels    map[string]string // of the container, where the engine tells them
	Change    Change
	Signal    int // that was sent to it, if that is what happened
	Time      time.Time
}

// Labels that compose writes (https://github.com/docker/compose/blob/main/pkg/api/labels.go).
const (
	labelProject = "com.docker.compose.project"
	labelService = "com.docker.compose.service"
	labelNumber  = "com.docker.compose.container-number"
	labelOneOff  = "com.docker.compose.oneoff"
)
