package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/expression"
)

// plainTypes are those of values that can be written as text.
var plainTypes = []snapshot.ValueType{
	snapshot.String, snapshot.Int64, snapshot.Double, snapshot.Bool, snapshot.Timestamp, snapshot.IPAddress, snapshot.EmailAddress,
	snapshot.URI, snapshot.DNSName, snapshot.DurationType,
}

// Validate tells what is wrong with the expressions of an object, whatever else there is: such an object is refused.
func Validate(o *api.Object) api.Problems {
	v := validator{}
	switch spec := o.Spec.(type) {
	case *api.RuleSpec:
		v.rule(spec)
	case *api.Instance:
		path := api.Path{"spec"}
		if o.Kind.Kind == "instance" {
			path = path.At("params")
		}
		v.instance(path, spec.Params)
	case *api.AttributeManifestSpec:
		v.manifest(spec)
	case *api.RateLimitSpec:
		v.rateLimit(spec)
	case *api.QuotaSpecSpec:
		v.quotaSpec(spec)
	}
	return v.problems
}

type validator struct{ problems api.Problems }

// expression checks source, if it is not empty.
func (v *validator) expression(path api.Path, source string, want ...snapshot.ValueType) {
	_, err := lower(source, want...)
	v.invalid(path, err)
}

func (v *validator) invalid(path api.Path, err error) {
	if err != nil {
		v.problems = append(v.problems, api.Problem{Cause: metav1.CauseTypeFieldValueInvalid, Path: path, Detail: err.Error()})
	}
}

func (v *validator) required(path api.Path, source, what string) {
	if source == "" {
		v.problems = append(v.problems, api.Problem{Cause: metav1.CauseTypeFieldValueRequired, Path: path, Detail: "want " + what})
	}
}

// lower checks source, whose type must be one of want, and lowers it; an empty one is nil.
func lower(source string, want ...snapshot.ValueType) (*snapshot.Expression, error) {
	if source == "" {
		return nil, nil //nolint:nilnil // no expression is no error
	}
	e, err := expression.Check(source, expression.Attributes)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(want, e.Type) {
		names := make([]string, len(want))
		for i, t := range want {
			names[i] = string(t)
		}
		return nil, fmt.Errorf("want a value of type %s, got one of %s", strings.Join(names, ", "), e.Type)
	}
	return e, nil
}

func (v *validator) rule(r *api.RuleSpec) {
	spec := api.Path{"spec"}
	v.expression(spec.At("match"), r.Match, snapshot.Bool)
	v.operations(spec.At("requestHeaderOperations"), r.RequestHeaderOperations)
	v.operations(spec.At("responseHeaderOperations"), r.ResponseHeaderOperations)
}

func (v *validator) operations(path api.Path, ops []api.HeaderOperation) {
	for i := range ops {
		for j, value := range ops[i].Values {
			at := path.At(i, "values", j)
			v.required(at, value, `an expression, such as "a" in double quotes`)
			v.expression(at, value, snapshot.String)
		}
	}
}

var numeric = []snapshot.ValueType{snapshot.Int64, snapshot.Double, snapshot.DurationType, snapshot.String}

func (v *validator) instance(path api.Path, params any) {
	switch p := params.(type) {
	case *api.ListEntry:
		v.required(path.At("value"), p.Value, "an expression: what is looked for in the list")
		v.expression(path.At("value"), p.Value, plainTypes...)
	case *api.Metric:
		v.required(path.At("value"), p.Value, `an expression: what is counted, such as "1"`)
		v.expression(path.At("value"), p.Value, numeric...)
		v.table(path.At("dimensions"), p.Dimensions)
		v.expression(path.At("monitoredResourceType"), p.MonitoredResourceType, snapshot.String)
		v.table(path.At("monitoredResourceDimensions"), p.MonitoredResourceDimensions)
	case *api.Quota:
		v.table(path.At("dimensions"), p.Dimensions)
	case *api.LogEntry:
		v.expression(path.At("severity"), p.Severity, snapshot.String)
		v.expression(path.At("timestamp"), p.Timestamp, snapshot.Timestamp)
		v.table(path.At("variables"), p.Variables)
		v.expression(path.At("monitoredResourceType"), p.MonitoredResourceType, snapshot.String)
		v.table(path.At("monitoredResourceDimensions"), p.MonitoredResourceDimensions)
	case *api.Kubernetes:
		v.expression(path.At("sourceUid"), p.SourceUID, snapshot.String)
		v.expression(path.At("sourceIp"), p.SourceIP, snapshot.IPAddress)
		v.expression(path.At("destinationUid"), p.DestinationUID, snapshot.String)
		v.expression(path.At("destinationIp"), p.DestinationIP, snapshot.IPAddress)
		v.expression(path.At("destinationPort"), p.DestinationPort, snapshot.Int64)
	}
}

func (v *validator) table(path api.Path, values map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		v.required(path.At(name), values[name], `an expression, such as "a" in double quotes`)
		v.expression(path.At(name), values[name], plainTypes...)
	}
}

// manifest refuses attributes that no proxy knows.
func (v *validator) manifest(m *api.AttributeManifestSpec) {
	for _, name := range slices.Sorted(maps.Keys(m.Attributes)) {
		want, known := expression.Attributes[name]
		var detail string
		switch got := m.Attributes[name].ValueType; {
		case !known:
			detail = "no proxy knows such an attribute: a manifest can't add one"
		case got != string(want):
			detail = fmt.Sprintf("want valueType %s, which is the attribute's, got %s", want, got)
		default:
			continue
		}
		v.problems = append(v.problems, api.Problem{Cause: metav1.CauseTypeFieldValueNotSupported, Path: api.Path{"spec", "attributes", name}, Detail: detail})
	}
}
