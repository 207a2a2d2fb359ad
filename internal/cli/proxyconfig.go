package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func newProxyConfig(env *Env) *cobra.Command {
	c := &cobra.Command{
		Use:     "proxy-config",
		Aliases: []string{"pc"},
		Short:   "What one proxy really has in force",
		Example: "  meshctl proxy-config routes productpage-v1\n  meshctl proxy-config log reviews-v1 --level debug",
	}
	for _, v := range []struct {
		name, short string
		show        func(*snapshot.Snapshot) (header []string, rows [][]string)
	}{
		{"listeners", "Ports that it listens on, and what each is for", listenerRows},
		{"routes", "Rules by domain, in the order in which they are tried", routeRows},
		{"clusters", "Services and subsets, and how many endpoints each has", clusterRows},
		{"endpoints", "Workloads that can be reached, and the identity that each must show", endpointRows},
	} {
		c.AddCommand(newProxyConfigView(env, v.name, v.short, v.show))
	}
	c.AddCommand(
		newProxyConfigSecrets(env),
		newProxyConfigPage(env, "stats", "Counters", "/stats"),
		newProxyConfigPage(env, "all", "The whole snapshot, as JSON", "/config_dump"),
		newProxyConfigLog(env))
	return c
}

func newProxyConfigView(env *Env, name, short string, show func(*snapshot.Snapshot) ([]string, [][]string)) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use: name + " WORKLOAD", Short: short, Args: args(cobra.ExactArgs(1)), ValidArgsFunction: env.completeWorkload,
		RunE: func(c *cobra.Command, a []string) error {
			admin, err := env.proxyAdmin(c.Context(), a[0])
			if err != nil {
				return err
			}
			var s snapshot.Snapshot
			if err := admin.getJSON(c.Context(), "/config_dump", &s); err != nil {
				return err
			}
			header, rows := show(&s)
			if f == "table" {
				return table(env.Out, header, rows)
			}
			return encode(env.Out, f, records(header, rows))
		},
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

// records turns a table into objects, so that scripts need not cut columns.
func records(header []string, rows [][]string) []map[string]string {
	list := []map[string]string{}
	for _, r := range rows {
		o := map[string]string{}
		for i, h := range header {
			o[strings.ToLower(h)] = r[i]
		}
		list = append(list, o)
	}
	return list
}

func newProxyConfigPage(env *Env, name, short, path string) *cobra.Command {
	return &cobra.Command{
		Use: name + " WORKLOAD", Short: short, Args: args(cobra.ExactArgs(1)), ValidArgsFunction: env.completeWorkload,
		RunE: func(c *cobra.Command, a []string) error {
			admin, err := env.proxyAdmin(c.Context(), a[0])
			if err != nil {
				return err
			}
			b, err := admin.get(c.Context(), path)
			if err != nil {
				return err
			}
			_, err = env.Out.Write(b)
			return err
		},
	}
}

func newProxyConfigLog(env *Env) *cobra.Command {
	level := ""
	c := &cobra.Command{
		Use: "log WORKLOAD", Short: "Show or change a proxy's log level", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: env.completeWorkload,
		RunE: func(c *cobra.Command, a []string) error { return runProxyConfigLog(c.Context(), env, a[0], level) },
	}
	c.Flags().StringVar(&level, "level", "", "debug, info, warn or error")
	return c
}

func runProxyConfigLog(ctx context.Context, env *Env, workload, level string) error {
	admin, err := env.proxyAdmin(ctx, workload)
	if err != nil {
		return err
	}
	method, path := http.MethodGet, "/logging"
	if level != "" {
		method, path = http.MethodPost, "/logging?level="+level
	}
	resp, err := admin.do(ctx, method, path, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("proxy of %s: %s", workload, strings.TrimSpace(string(b)))
	}
	_, err = env.Out.Write(b)
	return err
}

func (e *Env) completeWorkload(c *cobra.Command, a []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(a) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words, _ := e.workloads(c.Context()) // without any there is nothing to complete
	return words, cobra.ShellCompDirectiveNoFileComp
}

// workloads are those of the mesh that have a proxy that runs, sorted.
func (e *Env) workloads(ctx context.Context) ([]string, error) {
	m, err := e.mesh(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range m.proxies() {
		names = append(names, p.Labels[labels.Workload])
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func listenerRows(s *snapshot.Snapshot) (header []string, rows [][]string) {
	add := func(port uint16, protocol, what string) {
		rows = append(rows, []string{strconv.Itoa(int(port)), protocol, what})
	}
	if len(s.Gateways) == 0 {
		add(mesh.PortOutbound, "any", fmt.Sprintf("what the application sends: %d virtual hosts, %d routes of TLS, %d of TCP", len(s.VirtualHosts), len(s.TLSRoutes), len(s.TCPRoutes)))
		add(mesh.PortInbound, "any", "what the application is sent")
		for _, p := range s.Proxy.Ports {
			add(mesh.PortInbound, cmp.Or(string(p.Protocol), "as the client speaks"), fmt.Sprintf("of it, port %d", p.Number))
		}
	}
	for _, g := range s.Gateways {
		add(g.Port, string(g.Protocol), fmt.Sprintf("gateway: %d virtual hosts, %d routes of TLS, %d of TCP", len(g.VirtualHosts), len(g.TLSRoutes), len(g.TCPRoutes)))
		for _, t := range g.TLSServers {
			add(g.Port, string(t.Protocol), fmt.Sprintf("gateway: %s, TLS %s ends here (%s)", strings.Join(t.ServerNames, ", "), t.TLS.Mode, t.Resource))
		}
	}
	add(mesh.PortAdmin, "http", "admin, from loopback alone")
	add(mesh.PortReady, "http", "readiness")
	add(mesh.PortMetrics, "http", "metrics")
	return []string{"PORT", "PROTOCOL", "FOR"}, rows
}

func routeRows(s *snapshot.Snapshot) (header []string, rows [][]string) {
	add := func(where string, hosts []snapshot.VirtualHost) {
		for _, h := range hosts {
			for _, r := range h.Routes {
				rows = append(rows, []string{where, strings.Join(h.Domains, ","), describeMatches(r.Matches), describeDestinations(r.Destinations), r.Resource})
			}
		}
	}
	if len(s.Gateways) == 0 {
		add("sidecar", s.VirtualHosts)
	}
	for _, g := range s.Gateways {
		add(strconv.Itoa(int(g.Port)), g.VirtualHosts)
		for _, t := range g.TLSServers {
			add(fmt.Sprintf("%d tls %s", g.Port, strings.Join(t.ServerNames, ",")), t.VirtualHosts)
		}
	}
	return []string{"LISTENER", "DOMAINS", "MATCH", "DESTINATION", "RULE"}, rows
}

func describeMatches(matches []snapshot.Match) string {
	if len(matches) == 0 {
		return "*"
	}
	var alternatives []string
	for _, m := range matches {
		var all []string
		for _, f := range []struct {
			name  string
			match *snapshot.StringMatch
		}{{"path", m.URI}, {"method", m.Method}, {"authority", m.Authority}, {"scheme", m.Scheme}} {
			if f.match != nil {
				all = append(all, f.name+describeString(f.match))
			}
		}
		for _, h := range m.Headers {
			all = append(all, describeHeader("", h))
		}
		for _, q := range m.QueryParams {
			all = append(all, describeHeader("?", q))
		}
		if m.Port != 0 {
			all = append(all, fmt.Sprintf("port=%d", m.Port))
		}
		alternatives = append(alternatives, strings.Join(all, " and "))
	}
	return strings.Join(alternatives, " or ")
}

func describeHeader(prefix string, h snapshot.HeaderMatch) string {
	text := prefix + h.Name
	if h.Value != nil {
		text += describeString(h.Value)
	}
	if h.Invert {
		text = "not " + text
	}
	return text
}

func describeString(m *snapshot.StringMatch) string {
	switch {
	case m.Regex != "":
		return "~" + m.Regex
	case m.Prefix != "":
		return "=" + m.Prefix + "*"
	default:
		return "=" + m.Exact
	}
}

func describeDestinations(destinations []snapshot.Destination) string {
	var targets []string
	for _, d := range destinations {
		name := d.Service
		if d.Subset != "" {
			name += "/" + d.Subset
		}
		if d.Port != 0 {
			name += ":" + strconv.Itoa(int(d.Port))
		}
		if len(destinations) > 1 {
			name += fmt.Sprintf(" (%d)", d.Weight)
		}
		targets = append(targets, name)
	}
	return strings.Join(targets, ", ")
}

func clusterRows(s *snapshot.Snapshot) (header []string, rows [][]string) {
	balancer := func(p snapshot.Policy) string {
		if p.LoadBalancer == "" {
			return string(snapshot.LeastRequest)
		}
		return string(p.LoadBalancer)
	}
	for _, v := range s.Services {
		rows = append(rows, []string{v.Host, "", balancer(v.Policy), strconv.Itoa(len(v.Endpoints))})
		for _, sub := range v.Subsets {
			rows = append(rows, []string{v.Host, sub.Name, balancer(sub.Policy), strconv.Itoa(len(sub.Endpoints))})
		}
	}
	return []string{"SERVICE", "SUBSET", "BALANCER", "ENDPOINTS"}, rows
}

func endpointRows(s *snapshot.Snapshot) (header []string, rows [][]string) {
	for _, w := range s.Workloads {
		var of []string
		for _, v := range s.Services {
			if slices.Contains(v.Endpoints, w.Name) {
				of = append(of, v.Name)
			}
		}
		identity := w.Identity
		if identity == "" || w.PlainText {
			identity = strings.TrimSpace(identity + " (plain text)")
		}
		rows = append(rows, []string{w.Name, strings.Join(w.Addresses, ","), strings.Join(of, ","), identity})
	}
	return []string{"WORKLOAD", "ADDRESSES", "SERVICES", "IDENTITY"}, rows
}
