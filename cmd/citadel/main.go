// Citadel is the mesh's certificate authority.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "golang.org/x/crypto/x509roots/fallback" // the image has no certificates of the world's authorities

	"github.com/composure-mesh/composure/citadel"
	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func main() {
	component.Main("citadel", map[string]component.Command{"": run, "dial": component.Dial})
}

func run(ctx context.Context, log *slog.Logger, _ []string) error {
	plane.SaveMemory()
	lifetime, err := time.ParseDuration(cmp.Or(os.Getenv("COMPOSURE_CERT_LIFETIME"), "24h"))
	if err != nil {
		return fmt.Errorf("COMPOSURE_CERT_LIFETIME: %w", err)
	}
	c, err := citadel.New(citadel.Config{
		TrustDomain:  cmp.Or(os.Getenv("COMPOSURE_TRUST_DOMAIN"), mesh.DefaultTrustDomain),
		Lifetime:     lifetime,
		StateDir:     mesh.StateDir,
		StoreFile:    filepath.Join(mesh.StateDir, "citadel.db"),
		MutualTLS:    snapshot.MutualTLS(strings.ToUpper(os.Getenv("COMPOSURE_MTLS"))),
		Socket:       mesh.Socket(mesh.RoleCitadel),
		AdminSocket:  mesh.AdminSocket,
		KeeperSocket: mesh.Socket(mesh.RoleKeeper),
		BundleFile:   mesh.TrustBundle,
		AttestKey:    mesh.AttestKey,
		Version:      component.Version,
		Log:          log,
	})
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
