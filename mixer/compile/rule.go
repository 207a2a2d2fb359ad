package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// lowering makes one rule.
type lowering struct {
	*Index
	object   *api.Object
	out      snapshot.MixerRule
	problems []analysis.Problem
}

// rule lowers a rule; it is nil where nothing is left that could be done.
func (x *Index) rule(o *api.Object) (*snapshot.MixerRule, []analysis.Problem) {
	spec := o.Spec.(*api.RuleSpec)
	l := lowering{Index: x, object: o, out: snapshot.MixerRule{Name: o.String()}}
	l.out.Match = l.expression("spec.match", spec.Match, snapshot.Bool)
	if spec.Match != "" && l.out.Match == nil {
		return nil, l.problems // a rule that can't be read must not hold for everything
	}
	for i := range spec.Actions {
		l.action(fmt.Sprintf("spec.actions[%d]", i), &spec.Actions[i])
	}
	l.out.RequestHeaders = l.headers("spec.requestHeaderOperations", spec.RequestHeaderOperations)
	l.out.ResponseHeaders = l.headers("spec.responseHeaderOperations", spec.ResponseHeaderOperations)
	if r := &l.out; len(r.Checks)+len(r.RequestHeaders)+len(r.ResponseHeaders)+len(r.Metrics)+len(r.Entries) == 0 {
		return nil, l.problems
	}
	return &l.out, l.problems
}

func (l *lowering) refuse(code analysis.Code, path, format string, args ...any) {
	l.problems = append(l.problems, problem(l.object, code, path, format, args...))
}

func (l *lowering) expression(path, source string, want ...snapshot.ValueType) *snapshot.Expression {
	e, err := lower(source, want...)
	if err != nil {
		l.refuse(analysis.SchemaValidationError, path, "%v", err)
	}
	return e
}

func (l *lowering) action(path string, a *api.RuleAction) {
	ns := l.object.Meta.Namespace
	ho, h := l.handler(a.Handler, ns)
	if h == nil {
		l.refuse(analysis.ReferencedResourceNotFound, path+".handler", "there is no handler %q: until there is, the action does nothing", a.Handler)
	}
	for i, name := range a.Instances {
		at := fmt.Sprintf("%s.instances[%d]", path, i)
		io, instance := l.instance(name, ns)
		switch {
		case instance == nil:
			l.refuse(analysis.ReferencedResourceNotFound, at, "there is no instance %q: until there is, it is given to nobody", name)
		case h == nil:
		case !takes(h, instance):
			l.refuse(analysis.SchemaWarning, at, "a %s is not for a handler of the adapter %s, which takes %s: it is not given to it", instance.Template, h.Adapter, strings.Join(templatesOf(h), ", "))
		default:
			l.dispatch(at, ho, h, io, instance)
		}
	}
}

// outside are the templates that handlers outside of mixer take.
var outside = []string{"logentry", "metric"}

func templatesOf(h *api.Handler) []string {
	if a := api.FindAdapter(h.Adapter); a != nil {
		return a.Templates
	}
	return outside
}

func takes(h *api.Handler, i *api.Instance) bool { return slices.Contains(templatesOf(h), i.Template) }

// dispatch gives an instance to a handler.
func (l *lowering) dispatch(path string, ho *api.Object, h *api.Handler, io *api.Object, i *api.Instance) {
	switch params := h.Params.(type) {
	case *api.Denier:
		l.out.Checks = append(l.out.Checks, snapshot.MixerCheck{
			Handler: FullName(ho), Deny: &snapshot.MixerDeny{Code: params.Status.Code, Message: params.Status.Message},
		})
	case *api.ListChecker:
		l.list(path, ho, params, i.Params.(*api.ListEntry))
	case *api.Prometheus:
		l.metric(path, ho, params, io, i.Params.(*api.Metric))
	case *api.KubernetesEnv:
		l.refuse(analysis.IneffectiveMatch, path, "does nothing: the keeper's facts tell every proxy which workload has an address")
	case *api.MemQuota, *api.RedisQuota: // counted where a QuotaSpec asks for it
	default: // stdio, fluentd, and what is outside of mixer
		l.entries(path, ho, io, i)
	}
}

func (l *lowering) list(path string, ho *api.Object, h *api.ListChecker, i *api.ListEntry) {
	value := l.expression(path, i.Value, plainTypes...)
	if value == nil {
		return
	}
	list := &snapshot.MixerList{Value: *value, Type: h.EntryType, Blacklist: h.Blacklist, Entries: slices.Clone(h.Overrides)}
	if h.ProviderURL != "" {
		provided, known := l.lists[h.ProviderURL]
		switch {
		case !known:
			list.Unavailable = "the list was not fetched yet"
		case provided.Problem != "":
			list.Unavailable = provided.Problem
		}
		for _, entry := range provided.Entries {
			if err := api.CheckListEntry(h.EntryType, entry); err != nil {
				list.Unavailable = "the list of " + h.ProviderURL + " is of no use: " + err.Error()
				list.Entries = slices.Clone(h.Overrides)
				break
			}
			list.Entries = append(list.Entries, entry)
		}
	}
	if h.EntryType == api.ListCaseInsensitive {
		for j := range list.Entries {
			list.Entries[j] = strings.ToLower(list.Entries[j])
		}
	}
	slices.Sort(list.Entries)
	list.Entries = slices.Compact(list.Entries)
	l.out.Checks = append(l.out.Checks, snapshot.MixerCheck{Handler: FullName(ho), List: list})
}

func (l *lowering) metric(path string, ho *api.Object, h *api.Prometheus, io *api.Object, i *api.Metric) {
	found := false
	for k := range h.Metrics {
		m := &h.Metrics[k]
		if o, _ := l.instance(m.InstanceName, ho.Meta.Namespace); o != io {
			continue
		}
		found = true
		name := m.FullName()
		if slices.Contains(report.StandardMetrics, name) {
			l.refuse(analysis.IneffectiveMatch, path, "%s is counted by every proxy as it is: this adds nothing to it", name)
			continue
		}
		out := snapshot.MixerMetric{Name: name, Description: m.Description, Kind: m.Kind}
		if m.Kind == api.KindDistribution {
			out.Bounds = m.Buckets.Bounds()
		}
		value := l.expression(path, i.Value, numeric...)
		for _, label := range m.LabelNames {
			source, ok := i.Dimensions[label]
			if !ok {
				l.refuse(analysis.ReferencedResourceNotFound, path, "%s has the label %s, which is no dimension of the instance: the metric is left out", name, label)
				value = nil
				break
			}
			e := l.expression(path, source, plainTypes...)
			if e == nil {
				value = nil
				break
			}
			out.Labels = append(out.Labels, api.LabelName(label))
			out.Dimensions = append(out.Dimensions, *e)
		}
		if value == nil {
			continue
		}
		out.Value = *value
		l.out.Metrics = append(l.out.Metrics, out)
	}
	if !found {
		l.refuse(analysis.ReferencedResourceNotFound, path, "no metric of %s has the instanceName %s: it is not counted", ho, FullName(io))
	}
}

func (l *lowering) entries(path string, ho, io *api.Object, i *api.Instance) {
	out := snapshot.MixerEntries{Handler: FullName(ho), Instance: FullName(io)}
	variables := map[string]string{}
	switch p := i.Params.(type) {
	case *api.LogEntry:
		out.Severity = l.expression(path, p.Severity, snapshot.String)
		out.Timestamp = l.expression(path, p.Timestamp, snapshot.Timestamp)
		maps.Copy(variables, p.Variables)
	case *api.Metric:
		maps.Copy(variables, p.Dimensions)
		variables["value"] = p.Value
	}
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if e := l.expression(path, variables[name], plainTypes...); e != nil {
			out.Variables = append(out.Variables, snapshot.MixerVariable{Name: name, Value: *e})
		}
	}
	l.out.Entries = append(l.out.Entries, out)
}

func (l *lowering) headers(path string, ops []api.HeaderOperation) []snapshot.MixerHeader {
	var out []snapshot.MixerHeader
	for i := range ops {
		h := snapshot.MixerHeader{Name: ops[i].Name, Operation: ops[i].Operation}
		if h.Operation == "" {
			h.Operation = "REPLACE"
		}
		for j, value := range ops[i].Values {
			e := l.expression(fmt.Sprintf("%s[%d].values[%d]", path, i, j), value, snapshot.String)
			if e == nil {
				return out
			}
			h.Values = append(h.Values, *e)
		}
		out = append(out, h)
	}
	return out
}

// checkHandler says what of a handler has no effect.
func (x *Index) checkHandler(o *api.Object, h *api.Handler) []analysis.Problem {
	var out []analysis.Problem
	path := "spec"
	if o.Kind.Kind == "handler" {
		path = "spec.params"
	}
	written, _ := o.Content["spec"].(map[string]any)
	if o.Kind.Kind == "handler" {
		written, _ = written["params"].(map[string]any)
	}
	for _, field := range []string{"validDuration", "valid_duration", "validUseCount", "valid_use_count", "cachingInterval", "caching_interval", "cachingUseCount", "caching_use_count"} {
		if written[field] != nil {
			out = append(out, problem(o, analysis.IneffectiveMatch, path+"."+field, "has no effect: proxies decide by themselves and keep no answers"))
		}
	}
	if l, ok := h.Params.(*api.ListChecker); ok && l.ProviderURL != "" {
		if list, known := x.lists[l.ProviderURL]; known && list.Problem != "" {
			out = append(out, problem(o, analysis.SchemaWarning, path+".providerUrl", "%s", list.Problem))
		}
	}
	if _, ok := h.Params.(*api.KubernetesEnv); ok && !IsDefault(o) {
		out = append(out, problem(o, analysis.IneffectiveMatch, path, "does nothing: the keeper's facts tell every proxy which workload has an address"))
	}
	if p, ok := h.Params.(*api.Prometheus); ok && !IsDefault(o) {
		for i := range p.Metrics {
			if name := p.Metrics[i].FullName(); slices.Contains(report.StandardMetrics, name) {
				out = append(out, problem(o, analysis.IneffectiveMatch, fmt.Sprintf("%s.metrics[%d]", path, i), "%s is counted by every proxy as it is: this adds nothing to it", name))
			} else if other := x.definesOtherwise(o, &p.Metrics[i]); other != nil {
				out = append(out, problem(o, analysis.SchemaWarning, fmt.Sprintf("%s.metrics[%d]", path, i), "%s has a metric %s of another kind, or with other labels: only one of them is shown", other, name))
			}
		}
	}
	return out
}

// definesOtherwise is another handler that has a metric of m's name which is not the same.
func (x *Index) definesOtherwise(o *api.Object, m *api.PrometheusMetric) *api.Object {
	for _, name := range slices.Sorted(maps.Keys(x.objects)) {
		other := x.objects[name]
		h, ok := other.Spec.(*api.Handler)
		if !ok || other == o {
			continue
		}
		p, ok := h.Params.(*api.Prometheus)
		if !ok {
			continue
		}
		for i := range p.Metrics {
			n := &p.Metrics[i]
			if n.FullName() == m.FullName() && (n.Kind != m.Kind || !slices.Equal(n.LabelNames, m.LabelNames) || !slices.Equal(n.Buckets.Bounds(), m.Buckets.Bounds())) {
				return other
			}
		}
	}
	return nil
}
