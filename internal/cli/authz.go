package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/explain"
	"github.com/composure-mesh/composure/mesh/labels"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func newAuthz(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "authz", Short: "Who may do what, as the proxies decide it"}
	c.AddCommand(newAuthzCan(env), newAuthzCheck(env))
	return c
}

type authzOptions struct {
	files    []string
	question explain.Question
	output   format
}

func newAuthzCan(env *Env) *cobra.Command {
	o := &authzOptions{}
	q := &o.question
	c := &cobra.Command{
		Use:   "can FROM METHOD URL",
		Short: "Whether a request is allowed, and by which policy",
		Long: "Asks the AuthorizationPolicies of the workloads that answer to the URL's host, with the code that their proxies decide with: those in force,\n" +
			"or, with -f, those of files alone. FROM is a workload, an identity as cluster.local/ns/default/sa/web, or " + explain.Nobody + ", a client without a\n" +
			"certificate. With files, workloads that these do not tell of are taken to be there, with the label app.\n\n" +
			"Exit code 0 for what is allowed, 1 for what is not.",
		Example: "  meshctl authz can productpage-v1 GET http://reviews:9080/reviews/0\n" +
			"  meshctl authz can none POST http://shop.example/admin --workload istio-ingressgateway --source-ip 203.0.113.7\n" +
			"  meshctl authz can -f policies.yaml web GET http://api/items --claims '{\"iss\":\"https://issuer.example\",\"sub\":\"jason\"}'",
		Args: args(cobra.ExactArgs(3)),
		RunE: func(c *cobra.Command, a []string) error {
			q.From, q.Method, q.URL = a[0], a[1], a[2]
			return runAuthzCan(c.Context(), env, o)
		},
	}
	addOutput(c, &o.output, "text", "json", "yaml")
	f := c.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file of YAML or JSON in place of the running mesh; - is stdin; repeatable")
	f.StringArrayVarP(&q.Headers, "header", "H", nil, "header of the request, as 'name: value'; repeatable")
	f.StringVar(&q.Workload, "workload", "", "the workload that is asked, such as a gateway; default: who answers to the URL's host")
	f.StringToStringVar(&q.Labels, "labels", nil, "with files: labels of the workload that is asked, besides app")
	f.Var(claims{&q.Claims}, "claims", claimsUsage)
	f.StringVar(&q.SourceIP, "source-ip", "", "address of the peer; default: the workload's")
	f.StringVar(&q.RemoteIP, "remote-ip", "", "address of the client behind a gateway; default: the peer's")
	f.StringVar(&q.ServerName, "sni", "", "server name of the client's TLS")
	f.BoolVar(&q.Bytes, "tcp", false, "ask about a connection to the URL's port that is no HTTP")
	return c
}

// claims is the value of a flag: what a token says.
type claims struct{ into *map[string]any }

const claimsUsage = "`JSON` object of the claims of a verified token; default: no token"

func (c claims) Set(text string) error {
	if err := json.Unmarshal([]byte(text), c.into); err != nil {
		return fmt.Errorf("want a JSON object: %w", err)
	}
	return nil
}
func (claims) String() string { return "" }
func (claims) Type() string   { return "JSON" }

func runAuthzCan(ctx context.Context, env *Env, o *authzOptions) error {
	a, err := o.can(ctx, env)
	if err != nil {
		return err
	}
	if o.output != "text" {
		err = encode(env.Out, o.output, a)
	} else {
		writeAccess(env.Out, &o.question, a)
	}
	if err == nil && !a.Allowed {
		return fmt.Errorf("denied: %s", a.Reason)
	}
	return err
}

func (o *authzOptions) can(ctx context.Context, env *Env) (*explain.Access, error) {
	if len(o.files) > 0 {
		files, err := readFiles(env, o.files)
		if err != nil {
			return nil, err
		}
		return files.Can(o.question)
	}
	guards, err := env.guards(ctx)
	if err != nil {
		return nil, err
	}
	var source *snapshot.Workload
	if !explain.IsIdentity(o.question.From) {
		for i := range guards {
			if guards[i].Workload.Name == o.question.From {
				source = &guards[i].Workload
			}
		}
		if source == nil {
			return nil, withCode(exitNotFound, fmt.Errorf("the mesh has no running proxy of workload %q; %s is a client without one", o.question.From, explain.Nobody))
		}
	}
	return explain.Ask(guards, source, o.question)
}

func readFiles(env *Env, names []string) (*explain.Files, error) {
	files := &explain.Files{}
	paths, err := expandAll(names)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		if err := addFile(env, files, path); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// guards are the workloads of the mesh, with what their proxies have in force.
func (e *Env) guards(ctx context.Context) ([]explain.Guard, error) {
	m, err := e.mesh(ctx)
	if err != nil {
		return nil, err
	}
	var guards []explain.Guard
	for _, c := range m.proxies() {
		admin, err := e.peer(ctx, "proxy of "+c.Labels[labels.Workload], c.ID, "/proxy")
		if err != nil {
			return nil, err
		}
		var s snapshot.Snapshot
		if err := admin.getJSON(ctx, "/config_dump", &s); err != nil {
			return nil, err
		}
		guards = append(guards, explain.Guard{Workload: s.Proxy, Security: s.Security})
	}
	return guards, nil
}

func writeAccess(w io.Writer, q *explain.Question, a *explain.Access) {
	word := map[bool]string{true: "allowed", false: "denied"}
	fmt.Fprintf(w, "%s: %s %s from %s\n\n", word[a.Allowed], q.Method, q.URL, cmp.Or(a.Principal, "a client without a certificate"))
	for _, v := range a.Workloads {
		fmt.Fprintf(w, "  %-20s %s: %s\n", v.Workload, word[v.Allowed], v.Reason)
		for _, asked := range v.Asks {
			fmt.Fprintf(w, "  %-20s if the extension provider allows it first: %s\n", "", asked)
		}
		if v.DryRun != "" {
			fmt.Fprintf(w, "  %-20s a dry run would have: %s\n", "", v.DryRun)
		}
	}
}

func newAuthzCheck(env *Env) *cobra.Command {
	o := &authzOptions{}
	c := &cobra.Command{
		Use:   "check WORKLOAD",
		Short: "The access rules that hold for a workload, in the order in which they are asked",
		Args:  args(cobra.ExactArgs(1)),
		RunE:  func(c *cobra.Command, a []string) error { return runAuthzCheck(c.Context(), env, o, a[0]) },

		ValidArgsFunction: env.completeWorkload,
	}
	addOutput(c, &o.output, "table", "json", "yaml")
	c.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file of YAML or JSON in place of the running mesh; - is stdin; repeatable")
	return c
}

func runAuthzCheck(ctx context.Context, env *Env, o *authzOptions, workload string) error {
	list, err := o.policies(ctx, env, workload)
	if err != nil {
		return err
	}
	ordered := []snapshot.AccessPolicy{}
	for _, action := range []snapshot.AccessAction{snapshot.AccessCustom, snapshot.AccessDeny, snapshot.AccessAllow, snapshot.AccessAudit} {
		for _, p := range list {
			if p.Action == action {
				ordered = append(ordered, p)
			}
		}
	}
	if o.output != "table" {
		return encode(env.Out, o.output, ordered)
	}
	if len(ordered) == 0 {
		fmt.Fprintf(env.Out, "No AuthorizationPolicy is for %s: everything is allowed.\n", workload)
		return nil
	}
	var rows [][]string
	for i := range ordered {
		p := &ordered[i]
		action := string(p.Action)
		switch {
		case p.DryRun:
			action += " (dry run)"
		case p.Provider != "":
			action += " (" + p.Provider + ")"
		}
		rows = append(rows, []string{action, p.Namespace + "/" + p.Name, strconv.Itoa(len(p.Rules)), firstRule(p)})
	}
	return table(env.Out, []string{"ACTION", "POLICY", "RULES", "MATCHES"}, rows)
}

func (o *authzOptions) policies(ctx context.Context, env *Env, workload string) ([]snapshot.AccessPolicy, error) {
	if len(o.files) > 0 {
		files, err := readFiles(env, o.files)
		if err != nil {
			return nil, err
		}
		return files.Policies(workload)
	}
	admin, err := env.proxyAdmin(ctx, workload)
	if err != nil {
		return nil, err
	}
	var s snapshot.Snapshot
	if err := admin.getJSON(ctx, "/config_dump", &s); err != nil || s.Security == nil {
		return nil, err
	}
	return s.Security.Access, nil
}

// firstRule is the first rule in a few words.
func firstRule(p *snapshot.AccessPolicy) string {
	if len(p.Rules) == 0 {
		return "nothing"
	}
	raw, err := json.Marshal(p.Rules[0])
	text := strings.NewReplacer(`"`, "", "{", "", "}", "", "[", "", "]", "").Replace(string(raw))
	switch {
	case err != nil:
		return err.Error()
	case text == "":
		return "everything"
	case len(p.Rules) > 1:
		text += ", …"
	}
	return text
}
