package api

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// decodeStruct decodes value into out, a pointer to a struct of ours, for the kinds that istio.io/api has no message for.
// It is as strict as decodeProto. A field goes by its json tag, or by the same name in snake case, as Istio 1.0 took both;
// the tag enum lists the values of a string, in the order of protobuf's numbers, which stand for them, too. A field of type any is left as it was written.
func decodeStruct(path Path, value, out any) Problems {
	w := structWalk{}
	w.value(path, reflect.ValueOf(out).Elem(), "", value)
	return w.problems
}

type structWalk struct{ strictWalk }

var durationType = reflect.TypeFor[time.Duration]()

func (w *structWalk) value(path Path, out reflect.Value, enum string, value any) {
	switch {
	case out.Type() == durationType:
		text, _ := value.(string)
		d, err := time.ParseDuration(text)
		if err != nil {
			w.problems.invalid(path, "want a duration such as 1.5s, 100ms or 1h, got "+describe(value))
			return
		}
		out.SetInt(int64(d))
		return
	case out.Kind() == reflect.Pointer:
		out.Set(reflect.New(out.Type().Elem()))
		w.value(path, out.Elem(), enum, value)
		return
	}
	switch out.Kind() {
	case reflect.Interface:
		out.Set(reflect.ValueOf(value))
	case reflect.String:
		w.text(path, out, enum, value)
	case reflect.Bool:
		b, _ := w.boolean(path, value).(bool)
		out.SetBool(b)
	case reflect.Int32, reflect.Int64:
		bits := out.Type().Bits()
		n, _ := w.integer(path, value, -1<<(bits-1), 1<<(bits-1)-1).(int64)
		out.SetInt(n)
	case reflect.Float64:
		switch n := w.number(path, value).(type) {
		case int64:
			out.SetFloat(float64(n))
		case float64:
			out.SetFloat(n)
		}
	case reflect.Slice:
		w.list(path, out, enum, value)
	case reflect.Map:
		w.table(path, out, enum, value)
	case reflect.Struct:
		w.object(path, out, value)
	default:
		panic("api: no decoding of " + out.Type().String())
	}
}

func (w *structWalk) text(path Path, out reflect.Value, enum string, value any) {
	s, ok := value.(string)
	names := strings.Split(enum, ",")
	if n, number := value.(int64); number && enum != "" && n >= 0 && n < int64(len(names)) {
		s = names[n] // protobuf's number of it
	}
	switch {
	case !ok && enum == "":
		w.problems.invalid(path, "want a string, got "+describe(value)+quoteHint(value))
	case enum != "" && !slices.Contains(names, s):
		w.problems.invalid(path, fmt.Sprintf("want one of %s, got %s", strings.ReplaceAll(enum, ",", ", "), describe(value)))
	}
	out.SetString(s)
}

func (w *structWalk) list(path Path, out reflect.Value, enum string, value any) {
	list, ok := value.([]any)
	if !ok {
		w.problems.invalid(path, "want a list, got "+describe(value))
		return
	}
	out.Set(reflect.MakeSlice(out.Type(), len(list), len(list)))
	for i, v := range list {
		w.value(path.At(i), out.Index(i), enum, v)
	}
}

func (w *structWalk) table(path Path, out reflect.Value, enum string, value any) {
	object, ok := value.(map[string]any)
	if !ok {
		w.problems.invalid(path, "want an object, got "+describe(value))
		return
	}
	// Defaults that are not written stay.
	defaults := out.MapRange()
	merged := reflect.MakeMap(out.Type())
	for defaults.Next() {
		merged.SetMapIndex(defaults.Key(), defaults.Value())
	}
	out.Set(merged)
	for _, key := range slices.Sorted(maps.Keys(object)) {
		v := reflect.New(out.Type().Elem()).Elem()
		w.value(path.At(key), v, enum, object[key])
		out.SetMapIndex(reflect.ValueOf(key), v)
	}
}

func (w *structWalk) object(path Path, out reflect.Value, value any) {
	object, ok := value.(map[string]any)
	if !ok {
		w.problems.invalid(path, "want an object, got "+describe(value))
		return
	}
	fields := structFields(out.Type())
	written := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if object[key] == nil { // as absent
			continue
		}
		name := camelCase(key)
		f, known := fields[name]
		if !known {
			w.problems.invalid(path.At(key), "unknown field"+suggestOf(slices.Sorted(maps.Keys(fields)), key))
			continue
		}
		if other, twice := written[name]; twice {
			w.problems.invalid(path.At(key), "is the same field as "+other)
			continue
		}
		written[name] = key
		w.value(path.At(key), out.FieldByIndex(f.Index), f.Tag.Get("enum"), object[key])
	}
}

// structFields are t's fields by their names in JSON, those of embedded structs among them.
func structFields(t reflect.Type) map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for _, f := range reflect.VisibleFields(t) {
		if name := f.Tag.Get("json"); name != "" {
			fields[name] = f
		}
	}
	return fields
}

// camelCase is a name of protobuf as JSON has it: label_names is labelNames.
func camelCase(name string) string {
	parts := strings.Split(name, "_")
	for i, p := range parts[1:] {
		if p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}

// structSchema is the OpenAPI schema of a type that decodeStruct decodes into.
func structSchema(t reflect.Type, enum string) map[string]any {
	switch {
	case t == durationType:
		return map[string]any{"type": "string"}
	case t.Kind() == reflect.Pointer:
		return structSchema(t.Elem(), enum)
	}
	switch t.Kind() {
	case reflect.Interface:
		return map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int32, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": structSchema(t.Elem(), enum)}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": structSchema(t.Elem(), enum)}
	case reflect.Struct:
		properties := map[string]any{}
		for name, f := range structFields(t) {
			properties[name] = structSchema(f.Type, f.Tag.Get("enum"))
		}
		return map[string]any{"type": "object", "properties": properties}
	default:
		schema := map[string]any{"type": "string"}
		if enum != "" {
			var names []any
			for _, name := range strings.Split(enum, ",") {
				names = append(names, name)
			}
			schema["enum"] = names
		}
		return schema
	}
}
