package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/composure-mesh/composure/mesh/snapshot"
	checked "github.com/composure-mesh/composure/mixer/expression"
	"github.com/composure-mesh/composure/proxy/expression"
)

func newPolicy(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "What policies would do"}
	c.AddCommand(newPolicyEval(env))
	return c
}

type policyEvalOptions struct {
	attributes, vocabulary string
	output                 format
}

func newPolicyEval(env *Env) *cobra.Command {
	o := &policyEvalOptions{}
	c := &cobra.Command{
		Use:   "eval EXPRESSION",
		Short: "Evaluate an expression of Mixer's language, as a proxy does",
		Long: "Checks an expression against the vocabulary of attributes, evaluates it, and shows the value, its type and the attributes that were\n" +
			"asked for. Attributes are a YAML or JSON object of names and values: times as 2006-01-02T15:04:05Z, durations as 1m30s.",
		Example: "  meshctl policy eval --attributes request.yaml 'request.headers[\"user\"] | \"nobody\"'",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(_ *cobra.Command, a []string) error { return runPolicyEval(env, o, a[0]) },
	}
	addOutput(c, &o.output, "text", "json", "yaml")
	c.Flags().StringVar(&o.attributes, "attributes", "", "file of attributes and their values; none are there without it")
	c.Flags().StringVar(&o.vocabulary, "vocabulary", "", "file of attributes and their types, as {\"request.size\": \"INT64\"}, in place of the proxies' own")
	return c
}

func runPolicyEval(env *Env, o *policyEvalOptions, source string) error {
	vocabulary, err := readVocabulary(o.vocabulary)
	if err != nil {
		return err
	}
	attributes := fileAttributes{types: vocabulary, asked: map[string]bool{}}
	if o.attributes != "" {
		if err := readYAML(o.attributes, &attributes.values); err != nil {
			return err
		}
	}
	e, err := checked.Check(source, vocabulary)
	if err != nil {
		return err
	}
	eval := func(e *snapshot.Expression) (expression.Value, error) {
		program, err := expression.Compile(e)
		if err != nil {
			return expression.Value{}, err
		}
		return program.Eval(&attributes)
	}
	v, err := eval(e)
	if err != nil {
		return checked.Locate(source, vocabulary, err, func(part *snapshot.Expression) error {
			_, err := eval(part)
			return err
		})
	}
	referenced := slices.AppendSeq([]string{}, maps.Keys(attributes.asked)) // none are [] in JSON
	slices.Sort(referenced)
	if o.output == "text" {
		shown, err := json.Marshal(plain(&v))
		if err != nil {
			return err
		}
		fmt.Fprintf(env.Out, "value:      %s\ntype:       %s\nattributes: %s\n", shown, v.Type, strings.Join(referenced, ", "))
		return nil
	}
	return encode(env.Out, o.output, map[string]any{"value": plain(&v), "type": v.Type, "attributes": referenced})
}

// plain is a value as JSON has it; times, durations and addresses are text.
func plain(v *expression.Value) any {
	switch v.Type {
	case snapshot.Int64:
		return v.Int
	case snapshot.Double:
		return v.Float
	case snapshot.Bool:
		return v.True()
	case snapshot.StringMap:
		if m, ok := v.Map.(*fileMap); ok {
			return m.elements
		}
		return map[string]string{} // emptyStringMap()
	default:
		return v.Text()
	}
}

func readVocabulary(file string) (checked.Vocabulary, error) {
	if file == "" {
		return checked.Attributes, nil
	}
	var names map[string]string
	if err := readYAML(file, &names); err != nil {
		return nil, err
	}
	v := checked.Vocabulary{}
	for name, t := range names {
		typ, err := checked.TypeOf(t)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, name, err)
		}
		v[name] = typ
	}
	return v, nil
}

// readYAML reads a file of YAML or JSON; numbers keep every digit.
func readYAML(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if b, err = yaml.YAMLToJSON(b); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// fileAttributes are values from a file. One is read as its type only when it is asked for, so that one of no concern
// does no harm. It keeps which were asked for, elements of maps as request.headers[user].
type fileAttributes struct {
	types  checked.Vocabulary
	values map[string]any
	asked  map[string]bool
}

func (a *fileAttributes) Attribute(name string) (expression.Value, bool, error) {
	a.asked[name] = true
	raw, ok := a.values[name]
	if !ok || raw == nil {
		return expression.Value{}, false, nil
	}
	v, err := typed(a.types[name], raw)
	if err != nil {
		return v, true, fmt.Errorf("attribute %s: %w", name, err)
	}
	if m, ok := v.Map.(*fileMap); ok {
		m.asked = func(key string) { a.asked[name+"["+key+"]"] = true }
	}
	return v, true, nil
}

func typed(t snapshot.ValueType, raw any) (expression.Value, error) {
	switch raw := raw.(type) {
	case string:
		if t != snapshot.Bool && t != snapshot.Int64 && t != snapshot.Double && t != snapshot.StringMap {
			return expression.Parse(t, raw)
		}
	case bool:
		if t == snapshot.Bool {
			return expression.Parse(t, fmt.Sprint(raw))
		}
	case json.Number:
		if t == snapshot.Int64 || t == snapshot.Double {
			return expression.Parse(t, raw.String())
		}
		if n, err := raw.Int64(); err == nil && t == snapshot.DurationType {
			return expression.Parse(t, time.Duration(n).String())
		}
	case map[string]any:
		if t == snapshot.StringMap {
			m := &fileMap{elements: map[string]string{}}
			for k, v := range raw {
				s, ok := v.(string)
				if !ok {
					return expression.Value{}, fmt.Errorf("element %q is %v, want a string", k, v)
				}
				m.elements[k] = s
			}
			return expression.Value{Type: t, Map: m}, nil
		}
	}
	// In Mixer's words.
	return expression.Value{}, fmt.Errorf("error converting value to %s: '%v'", strings.ToLower(string(t)), raw)
}

type fileMap struct {
	elements map[string]string
	asked    func(key string)
}

func (m *fileMap) Get(key string) (string, bool) {
	m.asked(key)
	v, ok := m.elements[key]
	return v, ok
}
