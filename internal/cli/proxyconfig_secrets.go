package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// proxySecrets is what a proxy says of its certificates at /certs, as far as people want it in a table.
type proxySecrets struct {
	Identity string
	Serial   string
	NotAfter time.Time
	Reason   string
	Servers  []struct {
		Server, Mode, Error string
		Hosts, From         []string
		Open                bool
		Certificates        []struct {
			Serial   string
			NotAfter time.Time
		}
	}
}

func newProxyConfigSecrets(env *Env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use: "secrets WORKLOAD", Short: "Certificates: the proxy's own, and those of a gateway's servers; never a key",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: env.completeWorkload,
		RunE: func(c *cobra.Command, a []string) error {
			admin, err := env.proxyAdmin(c.Context(), a[0])
			if err != nil {
				return err
			}
			if f != "table" {
				var all any
				if err := admin.getJSON(c.Context(), "/certs", &all); err != nil {
					return err
				}
				return encode(env.Out, f, all)
			}
			var s proxySecrets
			if err := admin.getJSON(c.Context(), "/certs", &s); err != nil {
				return err
			}
			return table(env.Out, []string{"FOR", "FROM", "STATE", "SERIAL", "NOT AFTER", "REASON"}, s.rows())
		},
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

func (s *proxySecrets) rows() [][]string {
	state := func(ok bool, yes, no string) string {
		if ok {
			return yes
		}
		return no
	}
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	rows := [][]string{{s.Identity, "citadel", state(s.Reason == "", "valid", "missing"), s.Serial, when(s.NotAfter), s.Reason}}
	for _, server := range s.Servers {
		row := []string{strings.Join(server.Hosts, ","), strings.Join(server.From, ","), state(server.Open, "open", "closed"), "", "", server.Error}
		for i, c := range server.Certificates {
			if i == 0 {
				row[3], row[4] = c.Serial, when(c.NotAfter)
			}
		}
		rows = append(rows, row)
	}
	return rows
}
