//go:build linux

package sandbox

import (
	"context"
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Reap takes in the children that the kernel gives to PID 1 when their parents die, until ctx is done. It takes
// in every child, so nothing in the process may start one and wait for it meanwhile.
func Reap(ctx context.Context) error {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		for reapOne() {
		}
		select {
		case <-ctx.Done():
			return nil
		case <-died:
		}
	}
}

// reapOne reports whether there was a dead child.
func reapOne() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && pid > 0
		}
	}
}
