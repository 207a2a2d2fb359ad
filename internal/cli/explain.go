package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/explain"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

type explainOptions struct {
	from    string
	files   []string
	request explain.Request
	output  format
}

func newExplain(env *Env) *cobra.Command {
	o := &explainOptions{}
	c := &cobra.Command{
		Use:   "explain --from WORKLOAD --to URL",
		Short: "Where a request would go, by which rule, and why not by the others",
		Long: "Tells what the proxy of a workload would do with a request: the listener and the rule that it meets, where that sends it, and why\n" +
			"the rules before it did not match. It asks the tables that the proxy is running on, or, with -f, those that would be made of files: of the\n" +
			"mesh's own objects, and of Kubernetes' Services, Endpoints, Pods and Deployments, which say what runs. --from may be a gateway.",
		Example: "  meshctl explain --from productpage-v1 --to http://reviews:9080/reviews/0 -H 'end-user: jason'\n" +
			"  meshctl explain -f bookinfo.yaml -f routes.yaml --from istio-ingressgateway --to http://shop.example/productpage",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runExplain(c.Context(), env, o) },
	}
	addOutput(c, &o.output, "text", "json", "yaml")
	c.Flags().StringVar(&o.from, "from", "", "the workload that sends it, or the gateway that it comes to")
	c.Flags().StringVar(&o.request.URL, "to", "", "URL of the request: http://host:port/path or grpc://host:port/service/method; or of a connection: tcp://host:port, tls://host:port")
	c.Flags().StringVarP(&o.request.Method, "request", "X", "GET", "method of the request")
	c.Flags().StringArrayVarP(&o.request.Headers, "header", "H", nil, "header of the request, as 'name: value'; repeatable")
	c.Flags().Var(claims{&o.request.Claims}, "claims", claimsUsage)
	c.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file of YAML or JSON in place of the running mesh; - is stdin; repeatable")
	_ = c.RegisterFlagCompletionFunc("from", env.completeWorkload)
	return c
}

func runExplain(ctx context.Context, env *Env, o *explainOptions) error {
	if o.from == "" || o.request.URL == "" {
		return withCode(exitUsage, fmt.Errorf("--from and --to are needed; see meshctl explain --help"))
	}
	e, err := o.explain(ctx, env)
	if err != nil {
		return err
	}
	if o.output != "text" {
		return encode(env.Out, o.output, e)
	}
	writeExplanation(env.Out, o, e)
	return nil
}

func (o *explainOptions) explain(ctx context.Context, env *Env) (*explain.Explanation, error) {
	if len(o.files) == 0 {
		admin, err := env.proxyAdmin(ctx, o.from)
		if err != nil {
			return nil, err
		}
		var s snapshot.Snapshot
		if err := admin.getJSON(ctx, "/config_dump", &s); err != nil {
			return nil, err
		}
		e, err := explain.Snapshot(&s, o.request)
		if err != nil {
			return nil, err
		}
		guards, err := env.met(ctx, e, &s)
		if err != nil {
			return nil, err
		}
		return e, e.Meet(guards, &s.Proxy, o.request)
	}
	files, err := readFiles(env, o.files)
	if err != nil {
		return nil, err
	}
	return files.Explain(o.from, o.request)
}

// met are the workloads whose proxies ask who sends an explained request: its endpoints, and the gateway that it comes to.
func (e *Env) met(ctx context.Context, x *explain.Explanation, s *snapshot.Snapshot) ([]explain.Guard, error) {
	guards := []explain.Guard{{Workload: s.Proxy, Security: s.Security}}
	for _, m := range x.Members() {
		if m.Identity == "" || m.Name == s.Proxy.Name {
			continue
		}
		admin, err := e.proxyAdmin(ctx, m.Name)
		if err != nil {
			return nil, err
		}
		var to snapshot.Snapshot
		if err := admin.getJSON(ctx, "/config_dump", &to); err != nil {
			return nil, err
		}
		guards = append(guards, explain.Guard{Workload: to.Proxy, Security: to.Security})
	}
	return guards, nil
}

func addFile(env *Env, files *explain.Files, name string) error {
	if name == "-" {
		return files.Add("stdin", env.In)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return files.Add(name, f)
}

func writeExplanation(w io.Writer, o *explainOptions, e *explain.Explanation) {
	what := o.request.Method + " " + o.request.URL
	if strings.HasPrefix(o.request.URL, "tcp:") || strings.HasPrefix(o.request.URL, "tls:") {
		what = o.request.URL
	}
	fmt.Fprintf(w, "%s from %s: %s\n\n", what, o.from, e.Reason)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %-13s %s\n", name, value)
		}
	}
	line("listener", e.Listener)
	line("virtual host", e.VirtualHost)
	for _, s := range e.Steps {
		if s.Matched {
			line("rule", s.Rule)
		} else {
			line("not", s.Rule+", which wants "+cmp.Or(strings.Join(s.Reasons, "; or "), "nothing"))
		}
	}
	line("redirect", e.Redirect)
	if e.Rewrite != nil {
		line("path", e.Rewrite.URI)
		line("authority", e.Rewrite.Authority)
	}
	for _, h := range e.Headers {
		line("header", h)
	}
	for _, p := range e.Policies {
		line("policy", p)
	}
	line("timeout", e.Timeout)
	if e.Retries != nil {
		line("retries", fmt.Sprintf("%d, on %s", e.Retries.Attempts, cmp.Or(strings.Join(e.Retries.RetryOn, ","), "the default conditions")))
		line("per try", e.Retries.PerTryTimeout)
	}
	if e.Fault != nil {
		if d := e.Fault.Delay; d != nil {
			line("delay", fmt.Sprintf("%s for %g %%", d.FixedDelay, d.Percentage))
		}
		if a := e.Fault.Abort; a != nil {
			status := strconv.Itoa(a.HTTPStatus)
			if a.GRPCStatus != nil {
				status = fmt.Sprintf("gRPC status %d", *a.GRPCStatus)
			}
			line("abort", fmt.Sprintf("%s for %g %%", status, a.Percentage))
		}
	}
	for _, m := range e.Mirrors {
		line("mirror", fmt.Sprintf("%s for %g %%", named(m.Destination, m.Subset), m.Percentage))
	}
	writeDestinations(w, e)
}

func named(destination, subset string) string {
	if subset == "" {
		return destination
	}
	return destination + " subset " + subset
}

func writeDestinations(w io.Writer, e *explain.Explanation) {
	names := map[string]explain.Member{}
	for _, m := range e.Members() {
		names[m.Address] = m
	}
	for _, d := range e.Weights {
		fmt.Fprintf(w, "  to            %s port %d", named(d.Destination, d.Subset), d.Port)
		if len(e.Weights) > 1 {
			fmt.Fprintf(w, ", weight %d", d.Weight)
		}
		fmt.Fprintln(w)
		for _, a := range d.Endpoints {
			m := names[a]
			how := "plain text"
			if m.Identity != "" {
				how = "mutual TLS with " + m.Identity
			}
			if m.Name == "" {
				how = "" // of a lighter destination
			}
			fmt.Fprintf(w, "                  %s\n", strings.TrimSpace(strings.Join([]string{a, m.Name, how}, "  ")))
		}
	}
}
