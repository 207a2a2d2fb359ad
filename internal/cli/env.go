// Package cli is meshctl: one file a command. Data goes to stdout, talk to stderr; an error says what to do next.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/docker/docker/client"

	"github.com/composure-mesh/composure/internal/docker"
	"github.com/composure-mesh/composure/internal/images"
)

// Env is what the commands of one run share.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Dir      string // working directory

	// Project is the value of -p: the mesh to talk to.
	Project string

	connectOnce sync.Once
	engine      Engine
	engineErr   error
}

// Engine is what meshctl asks of a Docker engine: a *docker.Engine.
type Engine interface {
	client.APIClient
	Architecture() string
	Dial(ctx context.Context, containerID string, command ...string) (net.Conn, error)
	LoadImages(ctx context.Context, set *images.Set, loaded func(ref string)) error
}

// System is the environment of the process.
func System() (*Env, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	return &Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Dir: dir}, nil
}

// Engine is the Docker engine, connected at the first call.
func (e *Env) Engine(ctx context.Context) (Engine, error) {
	e.connectOnce.Do(func() {
		if e.engine != nil {
			return
		}
		engine, err := docker.Connect(ctx, e.Getenv)
		if err != nil {
			e.engineErr = withCode(exitUnreachable, err)
			return
		}
		e.engine = engine
	})
	return e.engine, e.engineErr
}

// talk writes a line of progress or advice.
func (e *Env) talk(format string, args ...any) { fmt.Fprintf(e.Err, format+"\n", args...) }

// The exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitUnreachable = 4
	exitInterrupted = 130
)

// codedError is an error with the exit code that it means.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func withCode(code int, err error) error { return &codedError{code, err} }

// exitCode is the process's exit code for the result of a command.
func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	var coded *codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}
