package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// DefaultNamespace is where an object goes that names none.
const DefaultNamespace = "default"

// Limits on an object before it is decoded.
const (
	MaxBytes = 1 << 20
	MaxDepth = 64
)

// Object is one valid object.
type Object struct {
	Kind *Kind
	Meta metav1.ObjectMeta
	// Spec is the kind's message, such as *v1.VirtualService of istio.io/api/networking.
	Spec any
	// Content is the object as it was written, with apiVersion, kind, metadata and spec.
	Content map[string]any
}

// String names the object as errors do: virtualservice/default/reviews.
func (o *Object) String() string {
	return o.Kind.Singular + "/" + o.Meta.Namespace + "/" + o.Meta.Name
}

// DecodeJSON decodes one object of one of kinds. Its error is Problems where the object itself is at fault.
func DecodeJSON(kinds []*Kind, raw []byte) (*Object, error) {
	content, err := ParseJSON(raw)
	if err != nil {
		return nil, err
	}
	return Decode(kinds, content)
}

// ParseJSON is raw as a map, within the limits, whole numbers as int64. A key that comes twice is an error.
func ParseJSON(raw []byte) (map[string]any, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("object of %d bytes is too large, want at most %d", len(raw), MaxBytes)
	}
	if err := checkDepth(raw); err != nil {
		return nil, err
	}
	var content map[string]any
	strict, err := kjson.UnmarshalStrict(raw, &content)
	if err != nil {
		return nil, fmt.Errorf("malformed JSON: %w", err)
	}
	if len(strict) > 0 {
		return nil, fmt.Errorf("malformed JSON: %w", errors.Join(strict...))
	}
	if content == nil {
		return nil, errors.New("malformed JSON: want an object")
	}
	return content, nil
}

// checkDepth counts brackets outside of strings: decoders recurse, and this does not.
func checkDepth(raw []byte) error {
	depth, quoted, escaped := 0, false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return fmt.Errorf("object is nested deeper than %d levels", MaxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// Decode decodes and validates content, which it keeps. A missing namespace is DefaultNamespace; a status is
// dropped, since nobody but the mesh writes one.
func Decode(kinds []*Kind, content map[string]any) (*Object, error) {
	o, ps := Read(kinds, content)
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return o, nil
}

// Read is Decode, but has the object, too, where it can be read and is not valid: to tell what else is wrong with it. Any of
// its fields may be missing. Nil is what can't be read.
func Read(kinds []*Kind, content map[string]any) (*Object, Problems) {
	apiVersion, _ := content["apiVersion"].(string)
	name, _ := content["kind"].(string)
	kind, err := Find(kinds, apiVersion, name)
	if err != nil {
		return nil, Problems{asProblem(err)}
	}
	o := &Object{Kind: kind, Content: content}
	var ps Problems
	for _, key := range slices.Sorted(maps.Keys(content)) {
		switch {
		case key == "apiVersion", key == "kind", key == "metadata":
		case key == "spec" && kind.body == nil, slices.Contains(kind.body, key):
		case key == "status":
			delete(content, key)
		default:
			ps.invalid(Path{key}, "unknown field")
		}
	}
	ps = append(ps, o.decodeMeta()...)
	if _, written := o.Meta.Annotations[DryRunAnnotation]; written && kind.Kind != "AuthorizationPolicy" {
		ps.invalid(Path{"metadata", "annotations", DryRunAnnotation}, "want it for an AuthorizationPolicy alone")
	}
	spec, ok := content["spec"].(map[string]any)
	if kind.body != nil {
		spec, ok = o.body(), true
	}
	if !ok && (content["spec"] != nil || !kind.bare) {
		ps.required(Path{"spec"}, "want an object")
		return nil, ps
	}
	var specProblems Problems
	o.Spec, specProblems = kind.decodeSpec(spec)
	if kind.body != nil {
		o.setBody(spec)
	}
	if len(specProblems) > 0 {
		return nil, append(ps, specProblems...)
	}
	readable := len(ps) == 0
	ps = append(ps, kind.validate(o)...)
	if !readable {
		return nil, ps
	}
	return o, ps
}

// body are the fields of an object without a spec.
func (o *Object) body() map[string]any {
	body := map[string]any{}
	for _, field := range o.Kind.body {
		if v, ok := o.Content[field]; ok {
			body[field] = v
		}
	}
	return body
}

func (o *Object) setBody(body map[string]any) {
	for _, field := range o.Kind.body {
		delete(o.Content, field)
	}
	maps.Copy(o.Content, body)
}

func asProblem(err error) Problem {
	var p Problem
	if !errors.As(err, &p) {
		p = Problem{Detail: err.Error()}
	}
	p.Cause = metav1.CauseTypeFieldValueNotSupported
	return p
}

func (o *Object) decodeMeta() Problems {
	var ps Problems
	meta, ok := o.Content["metadata"].(map[string]any)
	if !ok {
		ps.required(Path{"metadata"}, "want an object with a name")
		return ps
	}
	if ns, ok := meta["namespace"]; !ok || ns == "" || ns == nil {
		meta["namespace"] = DefaultNamespace
	}
	raw, err := json.Marshal(meta)
	if err != nil {
		ps.invalid(Path{"metadata"}, err.Error())
		return ps
	}
	strict, err := kjson.UnmarshalStrict(raw, &o.Meta, kjson.DisallowUnknownFields)
	if err != nil {
		ps.invalid(Path{"metadata"}, strings.TrimPrefix(err.Error(), "json: "))
		return ps
	}
	for _, e := range strict {
		var fe kjson.FieldError
		if errors.As(e, &fe) {
			ps.invalid(Path{"metadata", fe.FieldPath()}, "unknown field")
		} else {
			ps.invalid(Path{"metadata"}, e.Error())
		}
	}
	if o.Meta.GenerateName != "" {
		ps.unsupported(Path{"metadata", "generateName"}, "")
	}
	return append(ps, validateMeta(&o.Meta)...)
}

func validateMeta(m *metav1.ObjectMeta) Problems {
	var ps Problems
	if m.Name == "" {
		ps.required(Path{"metadata", "name"}, "want a name")
	} else {
		for _, msg := range validation.NameIsDNSSubdomain(m.Name, false) {
			ps.invalid(Path{"metadata", "name"}, msg)
		}
	}
	for _, msg := range validation.ValidateNamespaceName(m.Namespace, false) {
		ps.invalid(Path{"metadata", "namespace"}, msg)
	}
	meta := field.NewPath("metadata")
	errs := metavalidation.ValidateLabels(m.Labels, meta.Child("labels"))
	errs = append(errs, validation.ValidateAnnotations(m.Annotations, meta.Child("annotations"))...)
	for _, e := range errs {
		path := Path{}
		for _, part := range strings.Split(e.Field, ".") {
			path = append(path, part)
		}
		ps.invalid(path, e.ErrorBody())
	}
	return ps
}
