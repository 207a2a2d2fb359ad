package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/composure-mesh/composure/mesh"
)

// certificate is an entry of citadel's GET /debug/certs.
type certificate struct {
	Workload  string    `json:"workload"`
	Role      string    `json:"role"`
	Identity  string    `json:"identity"`
	Container string    `json:"container"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

func newCerts(env *Env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "certs",
		Short: "Who holds which certificate until when",
		Args:  args(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return runCerts(c.Context(), env, f) },
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

func runCerts(ctx context.Context, env *Env, f format) error {
	citadel, err := env.plane(ctx, mesh.RoleCitadel)
	if err != nil {
		return err
	}
	var list []certificate
	if err := citadel.getJSON(ctx, "/debug/certs", &list); err != nil {
		return err
	}
	if f != "table" {
		return encode(env.Out, f, list)
	}
	var rows [][]string
	for _, c := range list {
		holder := c.Workload
		if holder == "" {
			holder = c.Role
		}
		rows = append(rows, []string{holder, c.Role, c.Identity, c.NotAfter.Local().Format(time.DateTime), left(time.Until(c.NotAfter)), c.Serial})
	}
	return table(env.Out, []string{"HOLDER", "ROLE", "IDENTITY", "UNTIL", "LEFT", "SERIAL"}, rows)
}

func left(d time.Duration) string {
	if d <= 0 {
		return "expired"
	}
	return duration.HumanDuration(d)
}
