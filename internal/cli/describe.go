package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/composure-mesh/composure/api"
	access "github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
)

func newDescribe(env *Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "describe",
		Short: "What a service or a workload is, and what of the configuration concerns it",
		Example: "  meshctl describe service reviews\n" +
			"  meshctl describe workload reviews-v1",
	}
	c.AddCommand(newDescribeOne(env, "service", "A service: its ports and endpoints, the rules and policies for it", nil),
		newDescribeOne(env, "workload", "A workload: its addresses, certificate and services, the rules and policies for it", env.completeWorkload))
	return c
}

func newDescribeOne(env *Env, what, short string, complete cobra.CompletionFunc) *cobra.Command {
	var f format
	namespace := ""
	c := &cobra.Command{
		Use: what + " NAME", Short: short, Args: args(cobra.ExactArgs(1)), ValidArgsFunction: complete,
		RunE: func(c *cobra.Command, a []string) error {
			d, err := env.describe(c.Context(), what, a[0], namespace)
			if err != nil {
				return err
			}
			if f != "text" {
				return encode(env.Out, f, d)
			}
			d.write(env.Out, what+" "+cmp.Or(d.Service, a[0]))
			return nil
		},
	}
	addOutput(c, &f, "text", "json", "yaml")
	if what == "service" {
		addNamespace(c, &namespace)
	}
	return c
}

// description is pilot's, with what citadel knows.
type description struct {
	compile.Description
	Certificates []certificate `json:"certificates"`
	// Policies are the objects of citadel's that concern one of the workloads, with how their kind says so in a list.
	Policies []policyOf `json:"policies"`
}

type policyOf struct {
	Resource  string   `json:"resource"`
	Summary   string   `json:"summary,omitempty"`
	Workloads []string `json:"workloads"`
}

func (e *Env) describe(ctx context.Context, what, name, namespace string) (*description, error) {
	pilot, err := e.plane(ctx, mesh.RolePilot)
	if err != nil {
		return nil, err
	}
	if namespace, err = e.namespace(ctx, namespace); err != nil {
		return nil, err
	}
	d := &description{Certificates: []certificate{}, Policies: []policyOf{}}
	query := url.Values{what: {name}, "namespace": {namespace}}
	if err := pilot.describe(ctx, query, &d.Description); err != nil {
		return nil, err
	}
	if citadel, err := e.plane(ctx, mesh.RoleCitadel); err != nil {
		e.talk("warning: citadel does not answer: certificates and policies are left out: %v", err)
	} else if err := d.addSecurity(ctx, e, citadel); err != nil {
		return nil, err
	}
	return d, nil
}

func (p *peer) describe(ctx context.Context, query url.Values, d *compile.Description) error {
	resp, err := p.do(ctx, http.MethodGet, "/debug/describe?"+query.Encode(), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return json.NewDecoder(resp.Body).Decode(d)
	}
	var said struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || said.Error == "" {
		return fmt.Errorf("%s: %s", p.name, resp.Status)
	}
	if resp.StatusCode == http.StatusNotFound {
		return withCode(exitNotFound, errors.New(said.Error))
	}
	return fmt.Errorf("%s: %s", p.name, said.Error)
}

func (d *description) addSecurity(ctx context.Context, e *Env, citadel *peer) error {
	var all []certificate
	if err := citadel.getJSON(ctx, "/debug/certs", &all); err != nil {
		return err
	}
	for _, c := range all {
		if slices.ContainsFunc(d.Workloads, func(w mesh.Workload) bool { return w.Name == c.Workload }) {
			d.Certificates = append(d.Certificates, c)
		}
	}
	client, err := e.resources(ctx)
	if err != nil {
		return err
	}
	for _, k := range api.Security() {
		kind, err := client.named(k.Plural + "." + k.Group)
		if err != nil {
			return err
		}
		var list unstructured.UnstructuredList
		if err := client.send(ctx, kind, "GET", kind.path("", ""), nil, nil, &list); err != nil {
			return err
		}
		for _, u := range list.Items {
			o, err := api.Decode(api.Security(), u.Object)
			if err != nil {
				return err
			}
			if concerned := d.selected(o); len(concerned) > 0 {
				d.Policies = append(d.Policies, policyOf{o.String(), summary(o), concerned})
			}
		}
	}
	return nil
}

// selected are the workloads that a policy is for.
func (d *description) selected(o *api.Object) (names []string) {
	of := access.Concerning(o)
	for i := range d.Workloads {
		if of(&d.Workloads[i]) {
			names = append(names, d.Workloads[i].Name)
		}
	}
	return names
}

// summary is what a list shows of an object.
func summary(o *api.Object) string {
	var parts []string
	for _, c := range o.Kind.Columns {
		if v := fmt.Sprint(c.Cell(o)); v != "" && v != "<nil>" {
			parts = append(parts, strings.ToLower(c.Name)+" "+v)
		}
	}
	return strings.Join(parts, ", ")
}

func (d *description) write(w io.Writer, title string) {
	fmt.Fprintln(w, title)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", name, strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
	for _, p := range d.Ports {
		line("port", "%d %s", p.Number, p.Protocol)
	}
	if d.Service != "" && len(d.Endpoints) == 0 {
		line("endpoints", "none: its requests get 503")
	}
	for _, wl := range d.Workloads {
		d.writeWorkload(line, &wl)
	}
	for _, r := range d.References {
		line("rule", "%s %s %s", r.Resource, r.Path, r.Says)
	}
	if len(d.References) == 0 {
		line("rule", "none names it")
	}
	for _, p := range d.Policies {
		text := p.Resource
		if p.Summary != "" {
			text += " (" + p.Summary + ")"
		}
		if len(p.Workloads) < len(d.Workloads) {
			text += " for " + strings.Join(p.Workloads, ", ")
		}
		line("policy", "%s", text)
	}
	for _, p := range d.Problems {
		line(strings.ToLower(string(p.Code.Severity())), "[%s] %s: %s", p.Code, p.Resource, p)
	}
}

func (d *description) writeWorkload(line func(name, format string, args ...any), w *mesh.Workload) {
	state := cmp.Or(w.Health, "running")
	switch {
	case !w.Running:
		state = "stopped"
	case d.Service != "" && !slices.Contains(d.Endpoints, w.Name):
		state += ", gets no traffic"
	}
	var addresses []string
	for _, a := range w.Addresses {
		addresses = append(addresses, strings.Trim(a.IPv4+","+a.IPv6, ",")+" on "+a.Network)
	}
	line("workload", "%s: %s; %s", w.Name, state, strings.Join(addresses, ", "))
	switch {
	case w.Identity == "":
		line("", "has no proxy: it is reached in plain text")
	case !w.Meshed:
		line("", "is %s, and takes what anybody sends", w.Identity)
	default:
		line("", "is reached with mutual TLS as %s", w.Identity)
	}
	for _, c := range d.Certificates {
		if c.Workload == w.Name {
			line("", "certificate %s until %s, %s left", c.Serial, c.NotAfter.Local().Format(time.DateTime), left(time.Until(c.NotAfter)))
		}
	}
	if d.Service == "" {
		line("", "serves %s in namespace %s", strings.Join(w.Services, ", "), w.Namespace)
		for _, p := range w.Ports {
			line("port", "%d %s %s", p.Number, p.Protocol, strings.Join(p.Published, ","))
		}
	}
}
