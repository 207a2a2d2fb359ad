package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/composure-mesh/composure/internal/explain"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func newAuthn(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "authn", Short: "How callers prove who they are: mutual TLS and tokens"}
	c.AddCommand(newTLSCheck(env), newJWKS(env))
	return c
}

func newTLSCheck(env *Env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "tls-check [WORKLOAD [SERVICE]]",
		Short: "Who dials whom with mutual TLS, who takes what, and why",
		Long: "Asks the proxies for what is in force: how each one dials the services that it knows, and what these take.\n" +
			"STATUS is CONFLICT where they do not fit, and the exit code is 1 then.",
		Example: "  meshctl authn tls-check\n  meshctl authn tls-check productpage-v1 reviews",
		Args:    args(cobra.MaximumNArgs(2)),
		RunE: func(c *cobra.Command, a []string) error {
			return runTLSCheck(c.Context(), env, append(a, "", "")[0], append(a, "", "")[1], f)
		},
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

func runTLSCheck(ctx context.Context, env *Env, workload, service string, f format) error {
	dumps := map[string]*snapshot.Snapshot{}
	dump := func(name string) (*snapshot.Snapshot, error) {
		if s, known := dumps[name]; known {
			return s, nil
		}
		admin, err := env.proxyAdmin(ctx, name)
		if err != nil {
			return nil, err
		}
		s := &snapshot.Snapshot{}
		if err := admin.getJSON(ctx, "/config_dump", s); err != nil {
			return nil, err
		}
		dumps[name] = s
		return s, nil
	}
	clients := []string{workload}
	if workload == "" {
		var err error
		if clients, err = env.workloads(ctx); err != nil {
			return err
		}
	}
	pairs := []explain.TLSPair{}
	for _, name := range clients {
		client, err := dump(name)
		if err != nil {
			return err
		}
		meshed := map[string]bool{}
		for i := range client.Workloads {
			w := &client.Workloads[i]
			meshed[w.Name] = w.Identity != "" && !w.PlainText
		}
		var away error
		got, err := explain.TLS(client, func(name string) *snapshot.Modes {
			if !meshed[name] {
				return nil
			}
			server, err := dump(name)
			switch {
			case err != nil:
				away = err
				return &snapshot.Modes{Source: "its proxy does not answer"}
			case server.Security == nil:
				return &snapshot.Modes{Source: "none yet"}
			}
			return &server.Security.Authentication.TLS.Modes
		}, service)
		if err != nil {
			return err
		}
		if away != nil {
			env.talk("warning: %v", away)
		}
		pairs = append(pairs, got...)
	}
	if f != "table" {
		return encode(env.Out, f, pairs)
	}
	var rows [][]string
	conflicts := 0
	for _, p := range pairs {
		status, port := "OK", "*"
		if !p.OK {
			conflicts++
			status = "CONFLICT"
		}
		if p.Port != 0 {
			port = fmt.Sprint(p.Port)
		}
		host := p.Host + ":" + port
		if p.Subset != "" {
			host += " " + p.Subset
		}
		rows = append(rows, []string{p.Client, host, p.Workload, status, serverWord(p.Server), clientWord(p.ClientTLS), p.ServerFrom, p.ClientFrom})
	}
	if err := table(env.Out, []string{"CLIENT", "HOST:PORT", "WORKLOAD", "STATUS", "SERVER", "CLIENT", "AUTHN POLICY", "DESTINATION RULE"}, rows); err != nil {
		return err
	}
	if conflicts > 0 {
		return fmt.Errorf("%d conflicts: a DestinationRule sends plain text to who takes mutual TLS alone, or mutual TLS to who has no proxy", conflicts)
	}
	return nil
}

// serverWord is istioctl's of old.
func serverWord(m snapshot.MutualTLS) string {
	switch m {
	case snapshot.Strict:
		return "mTLS"
	case snapshot.Disable:
		return "HTTP"
	}
	return "HTTP/mTLS"
}

func clientWord(mutual bool) string {
	if mutual {
		return "mTLS"
	}
	return "HTTP"
}

// keySource is an entry of citadel's GET /debug/jwks.
type keySource struct {
	URI     string    `json:"uri"`
	Fetched time.Time `json:"fetched,omitzero"`
	Keys    int       `json:"keys"`
	Error   string    `json:"error,omitempty"`
	Tried   time.Time `json:"tried,omitzero"`
	Next    time.Time `json:"next,omitzero"`
}

func newJWKS(env *Env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "jwks",
		Short: "Where the keys of issuers are fetched from, and whether that works",
		Args:  args(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return runJWKS(c.Context(), env, f) },
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

func runJWKS(ctx context.Context, env *Env, f format) error {
	citadel, err := env.plane(ctx, mesh.RoleCitadel)
	if err != nil {
		return err
	}
	var list []keySource
	if err := citadel.getJSON(ctx, "/debug/jwks", &list); err != nil {
		return err
	}
	if f != "table" {
		return encode(env.Out, f, list)
	}
	var rows [][]string
	for _, k := range list {
		age := "never"
		if !k.Fetched.IsZero() {
			age = duration.HumanDuration(time.Since(k.Fetched)) + " ago"
		}
		rows = append(rows, []string{k.URI, strconv.Itoa(k.Keys), age, duration.HumanDuration(max(time.Until(k.Next), 0)), cmp.Or(k.Error, "-")})
	}
	return table(env.Out, []string{"URI", "KEYS", "FETCHED", "NEXT IN", "ERROR"}, rows)
}
