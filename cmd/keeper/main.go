// Keeper is the node agent of a mesh, the only part of it that talks to the Docker engine.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"syscall"

	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/keeper"
	"github.com/composure-mesh/composure/keeper/docker"
	"github.com/composure-mesh/composure/mesh"
)

// engineSocket is where the engine's socket is mounted in the keeper's container.
const engineSocket = "/var/run/docker.sock"

func main() {
	component.Main("keeper", map[string]component.Command{"": run, "dial": dial})
}

func run(ctx context.Context, log *slog.Logger, _ []string) error {
	name := os.Getenv("COMPOSURE_MESH")
	if name == "" {
		return errors.New("COMPOSURE_MESH is not set: it is the name of the mesh, which the label composure.mesh carries")
	}
	if err := keeper.DropPrivileges(log, engineSocket, mesh.Dir(mesh.RoleKeeper), path.Dir(mesh.AdminSocket)); err != nil {
		return err
	}
	engine, err := docker.New(engineSocket)
	if err != nil {
		return err
	}
	defer func() { _ = engine.Close() }() // the process ends
	k, err := keeper.New(keeper.Config{
		Scope:       keeper.Scope{Mesh: name, TrustDomain: cmp.Or(os.Getenv("COMPOSURE_TRUST_DOMAIN"), mesh.DefaultTrustDomain)},
		Engine:      engine,
		Socket:      mesh.Socket(mesh.RoleKeeper),
		AdminSocket: mesh.AdminSocket,
		BundleFile:  mesh.TrustBundle,
		AttestKey:   mesh.AttestKey,
		Version:     component.Version,
		Log:         log,
	})
	if err != nil {
		return err
	}
	return k.Run(ctx)
}

// dial is component.Dial as the owner of the admin socket's directory: an exec in the container starts as root, as
// the keeper itself does, but without the capability to enter another user's directory.
func dial(ctx context.Context, log *slog.Logger, args []string) error {
	if fi, err := os.Stat(path.Dir(mesh.AdminSocket)); err == nil && os.Geteuid() == 0 {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			if err := errors.Join(syscall.Setgid(int(st.Gid)), syscall.Setuid(int(st.Uid))); err != nil {
				return fmt.Errorf("become user %d: %w", st.Uid, err)
			}
		}
	}
	return component.Dial(ctx, log, args)
}
