package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fieldSet holds full names of protobuf fields.
type fieldSet map[protoreflect.FullName]bool

// decodeProto decodes spec into m. Only fields of supported may be set: what Istio has and this mesh does not do
// yet is refused rather than ignored. protojson's own errors carry no path, so the spec is first walked against
// the message's descriptor here. The walk makes a copy, in which aliases stand under today's names and durations in
// protojson's form; spec stays as it was written.
func decodeProto(spec map[string]any, m proto.Message, supported fieldSet) Problems {
	w := strictWalk{supported: supported, old: oldNames}
	today := w.message(Path{"spec"}, m.ProtoReflect().Descriptor(), spec)
	if len(w.problems) > 0 {
		return w.problems
	}
	raw, err := json.Marshal(today)
	if err == nil {
		err = protojson.Unmarshal(raw, m)
	}
	if err != nil {
		w.problems.invalid(Path{"spec"}, err.Error())
	}
	return w.problems
}

type strictWalk struct {
	supported fieldSet
	old       map[protoreflect.FullName]map[string]oldName
	problems  Problems
}

// message checks value and is its copy; nil where it is no object.
func (w *strictWalk) message(path Path, d protoreflect.MessageDescriptor, value any) map[string]any {
	object, ok := value.(map[string]any)
	if !ok {
		w.problems.invalid(path, "want an object, got "+describe(value))
		return nil
	}
	today := map[string]any{}
	chosen := map[protoreflect.FullName]string{} // by oneof
	var old []string
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if object[key] == nil { // as absent, in Kubernetes as in protojson
			continue
		}
		if w.old[d.FullName()][key] != nil {
			old = append(old, key)
			continue
		}
		fd := d.Fields().ByJSONName(key)
		if fd == nil {
			w.problems.invalid(path.At(key), "unknown field"+suggest(d, key))
			continue
		}
		if !w.supported[fd.FullName()] {
			w.problems.unsupported(path.At(key), "")
			continue
		}
		if oneof := fd.ContainingOneof(); oneof != nil {
			if other, taken := chosen[oneof.FullName()]; taken {
				w.problems.invalid(path, fmt.Sprintf("want only one of %s, got %s and %s", oneofNames(oneof), other, key))
			}
			chosen[oneof.FullName()] = key
		}
		today[key] = w.field(path.At(key), fd, object[key])
	}
	for _, key := range old {
		w.old[d.FullName()][key](w, path, today, object[key])
	}
	return today
}

func (w *strictWalk) field(path Path, fd protoreflect.FieldDescriptor, value any) any {
	switch {
	case fd.IsMap():
		object, ok := value.(map[string]any)
		if !ok {
			w.problems.invalid(path, "want an object, got "+describe(value))
			return nil
		}
		today := map[string]any{}
		for _, key := range slices.Sorted(maps.Keys(object)) {
			if _, err := strconv.ParseUint(key, 10, 32); err != nil && fd.MapKey().Kind() == protoreflect.Uint32Kind {
				w.problems.invalid(path.At(key), "want a number as the key, got "+describe(key))
			}
			today[key] = w.single(path.At(key), fd.MapValue(), object[key])
		}
		return today
	case fd.IsList():
		list, ok := value.([]any)
		if !ok {
			w.problems.invalid(path, "want a list, got "+describe(value))
			return nil
		}
		today := make([]any, len(list))
		for i, v := range list {
			today[i] = w.single(path.At(i), fd, v)
		}
		return today
	}
	return w.single(path, fd, value)
}

// single checks one value of fd, an element where fd is a list or a map, and is its copy.
func (w *strictWalk) single(path Path, fd protoreflect.FieldDescriptor, value any) any {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case durationMessage:
			return w.duration(path, value)
		case boolMessage:
			return w.boolean(path, value)
		case uint32Message:
			return w.integer(path, value, 0, math.MaxUint32)
		case doubleMessage:
			return w.number(path, value)
		}
		return w.message(path, fd.Message(), value)
	case protoreflect.StringKind:
		if _, ok := value.(string); !ok {
			w.problems.invalid(path, "want a string, got "+describe(value)+quoteHint(value))
		}
	case protoreflect.BytesKind:
		text, ok := value.(string)
		if _, err := base64.StdEncoding.DecodeString(text); !ok || err != nil {
			w.problems.invalid(path, "want bytes in base64, got "+describe(value))
		}
	case protoreflect.BoolKind:
		return w.boolean(path, value)
	case protoreflect.EnumKind:
		w.enum(path, fd.Enum(), value)
	case protoreflect.Int32Kind:
		return w.integer(path, value, math.MinInt32, math.MaxInt32)
	case protoreflect.Uint32Kind:
		return w.integer(path, value, 0, math.MaxUint32)
	case protoreflect.Uint64Kind:
		return w.integer(path, value, 0, 1<<53)
	case protoreflect.DoubleKind:
		return w.number(path, value)
	default:
		// Every field of the supported sets has one of the kinds above; a test holds that.
		w.problems.unsupported(path, fd.Kind().String())
	}
	return value
}

// Messages of protobuf's own that are plain values in JSON.
const (
	durationMessage = "google.protobuf.Duration"
	boolMessage     = "google.protobuf.BoolValue"
	uint32Message   = "google.protobuf.UInt32Value"
	doubleMessage   = "google.protobuf.DoubleValue"
)

// duration takes what Istio takes: Go's notation, as 1m30s or 100ms.
func (w *strictWalk) duration(path Path, value any) any {
	text, _ := value.(string)
	d, err := time.ParseDuration(text)
	if err != nil {
		w.problems.invalid(path, "want a duration such as 1.5s, 100ms or 1h, got "+describe(value))
		return nil
	}
	sign := ""
	if d < 0 {
		sign, d = "-", max(-d, 0)
	}
	return fmt.Sprintf("%s%d.%09ds", sign, d/time.Second, d%time.Second)
}

func (w *strictWalk) boolean(path Path, value any) any {
	if _, ok := value.(bool); !ok {
		w.problems.invalid(path, "want true or false, got "+describe(value))
	}
	return value
}

func (w *strictWalk) number(path Path, value any) any {
	switch value.(type) {
	case int64, float64:
	default:
		w.problems.invalid(path, "want a number, got "+describe(value))
	}
	return value
}

func (w *strictWalk) enum(path Path, d protoreflect.EnumDescriptor, value any) {
	name, ok := value.(string)
	if ok && d.Values().ByName(protoreflect.Name(name)) != nil {
		return
	}
	names := make([]string, d.Values().Len())
	for i := range names {
		names[i] = string(d.Values().Get(i).Name())
	}
	w.problems.invalid(path, fmt.Sprintf("want one of %s, got %s", strings.Join(names, ", "), describe(value)))
}

func (w *strictWalk) integer(path Path, value any, low, high int64) any {
	n, ok := value.(int64)
	if f, isFloat := value.(float64); isFloat && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		n, ok = int64(f), true
	}
	if !ok {
		w.problems.invalid(path, "want a whole number, got "+describe(value))
		return nil
	}
	if n < low || n > high {
		w.problems.invalid(path, fmt.Sprintf("want a number between %d and %d, got %d", low, high, n))
	}
	return n
}

// describe says what a decoded value is, shortly.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		if len(v) > 40 {
			v = v[:40] + "…"
		}
		return fmt.Sprintf("the string %q", v)
	case bool:
		return fmt.Sprint(v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("%T", v)
}

func quoteHint(v any) string {
	switch v.(type) {
	case int64, float64, bool:
		return ": put it in quotes"
	}
	return ""
}

func oneofNames(d protoreflect.OneofDescriptor) string {
	names := make([]string, d.Fields().Len())
	for i := range names {
		names[i] = d.Fields().Get(i).JSONName()
	}
	return strings.Join(names, ", ")
}

// suggest names the field that was likely meant.
func suggest(d protoreflect.MessageDescriptor, key string) string {
	names := make([]string, d.Fields().Len())
	for i := range names {
		names[i] = d.Fields().Get(i).JSONName()
	}
	return suggestOf(names, key)
}

// suggestOf names which of names was likely meant.
func suggestOf(names []string, key string) string {
	best, distance := "", 3
	plain := strings.ToLower(strings.ReplaceAll(key, "_", ""))
	for _, name := range names {
		if n := editDistance(plain, strings.ToLower(name)); n < distance && n < len(name)/2 {
			best, distance = name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
