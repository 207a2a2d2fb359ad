package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Dial runs command in a container and returns its stdin and stdout as a connection, as `docker` itself does
// over ssh. What the command writes to stderr becomes the error of a read that ends.
func (e *Engine) Dial(ctx context.Context, containerID string, command ...string) (net.Conn, error) {
	created, err := e.ContainerExecCreate(ctx, containerID, container.ExecOptions{
		Cmd: command, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return nil, fmt.Errorf("exec in container %.12s: %w", containerID, err)
	}
	hijacked, err := e.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{})
	if err != nil {
		return nil, fmt.Errorf("exec in container %.12s: %w", containerID, err)
	}
	pr, pw := io.Pipe()
	c := &execConn{hijacked: hijacked, stdout: pr, done: make(chan struct{})}
	go func() { // ends when the hijacked connection does, which Close closes
		defer close(c.done)
		var stderr strings.Builder
		_, err := stdcopy.StdCopy(pw, &stderr, hijacked.Reader)
		if msg := strings.TrimSpace(stderr.String()); msg != "" {
			err = errors.New(msg)
		}
		pw.CloseWithError(err) // nil is EOF
	}()
	return c, nil
}

// execConn is a net.Conn over an exec's streams.
type execConn struct {
	hijacked types.HijackedResponse
	stdout   *io.PipeReader
	once     sync.Once
	done     chan struct{}
}

func (c *execConn) Read(p []byte) (int, error)  { return c.stdout.Read(p) }
func (c *execConn) Write(p []byte) (int, error) { return c.hijacked.Conn.Write(p) }

func (c *execConn) Close() error {
	c.once.Do(func() {
		c.hijacked.Close()
		_ = c.stdout.Close()
		<-c.done
	})
	return nil
}

func (c *execConn) LocalAddr() net.Addr              { return c.hijacked.Conn.LocalAddr() }
func (c *execConn) RemoteAddr() net.Addr             { return c.hijacked.Conn.RemoteAddr() }
func (c *execConn) SetDeadline(time.Time) error      { return nil } // callers bound calls by context
func (c *execConn) SetReadDeadline(time.Time) error  { return nil }
func (c *execConn) SetWriteDeadline(time.Time) error { return nil }
