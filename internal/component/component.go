// Package component is what the mains of the mesh's own programs share: version, log, signals.
package component

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// Version is the build's version; the linker sets it.
var Version = "dev"

// Command is one verb of a program; its arguments come without the verb. A returned error is printed and ends
// the process with status 1.
type Command func(ctx context.Context, log *slog.Logger, args []string) error

// Main runs one of a program's commands: the verb is the first argument, and "" is the command without one.
// --version prints the version. The context ends at SIGTERM or SIGINT.
func Main(name string, commands map[string]Command) {
	args := os.Args[1:]
	verb := ""
	if len(args) > 0 {
		if args[0] == "--version" || args[0] == "version" {
			fmt.Println(name, Version)
			return
		}
		if _, ok := commands[args[0]]; ok {
			verb, args = args[0], args[1:]
		}
	}
	run, ok := commands[verb]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: it needs one of its commands\n", name)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, NewLogger(os.Stderr, name, LevelFromEnv()), args)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// LevelFromEnv is the log level in COMPOSURE_LOG_LEVEL (debug, info, warn, error); info if it says nothing
// sensible.
func LevelFromEnv() *slog.LevelVar {
	var level slog.LevelVar
	_ = level.UnmarshalText([]byte(os.Getenv("COMPOSURE_LOG_LEVEL"))) // the zero value is info
	return &level
}

// NewLogger writes lines of text, each with the component's name.
func NewLogger(w io.Writer, name string, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})).With("component", name)
}

// Dial is the command "dial" of a plane: it joins stdin and stdout to the plane's admin socket, so that meshctl
// reaches the plane's API through an exec in its container.
func Dial(ctx context.Context, log *slog.Logger, args []string) error {
	return DialTo("unix", mesh.AdminSocket)(ctx, log, args)
}

// dialPatience is how long an address may be without a listener: a component that has just been started listens within some 0.2 s, and
// who restarts one and asks it at once means to have an answer.
const dialPatience = 3 * time.Second

// dial connects to an address, and waits for one where nobody listens yet.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	for until := time.Now().Add(dialPatience); ; {
		conn, err := d.DialContext(ctx, network, address)
		absent := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
		if !absent || time.Now().After(until) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DialTo is a command that joins stdin and stdout to an address.
func DialTo(network, address string) Command {
	return func(ctx context.Context, _ *slog.Logger, _ []string) error {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		defer conn.Close()
		go func() {
			_, _ = io.Copy(conn, os.Stdin) // the end of either direction is the end of the stream
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		}()
		_, err = io.Copy(os.Stdout, conn)
		return err
	}
}
