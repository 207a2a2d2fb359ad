// Command meshctl puts compose projects into the mesh and steers it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/composure-mesh/composure/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	env, err := cli.System()
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshctl:", err)
		os.Exit(1)
	}
	os.Exit(cli.Run(ctx, env, os.Args[1:])) //nolint:gocritic // the process ends here; nothing is left to release
}
