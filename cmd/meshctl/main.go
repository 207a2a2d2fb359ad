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

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	env, err := cli.System()
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshctl:", err)
		return 1
	}
	return cli.Run(ctx, env, os.Args[1:])
}
