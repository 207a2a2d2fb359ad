package api

import (
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Schema is the OpenAPI schema of the kind's spec, with the fields that this mesh supports.
func (k *Kind) Schema() map[string]any { return k.schema() }

// protoSchema is the OpenAPI schema of a message, with the supported fields only.
func protoSchema(d protoreflect.MessageDescriptor, supported fieldSet) map[string]any {
	properties := map[string]any{}
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		if !supported[fd.FullName()] {
			continue
		}
		switch {
		case fd.IsMap():
			properties[fd.JSONName()] = map[string]any{"type": "object", "additionalProperties": valueSchema(fd.MapValue(), supported)}
		case fd.IsList():
			properties[fd.JSONName()] = map[string]any{"type": "array", "items": valueSchema(fd, supported)}
		default:
			properties[fd.JSONName()] = valueSchema(fd, supported)
		}
	}
	for name := range oldNames[d.FullName()] {
		properties[name] = map[string]any{"description": "of Istio 1.0"}
	}
	return map[string]any{"type": "object", "properties": properties}
}

func valueSchema(fd protoreflect.FieldDescriptor, supported fieldSet) map[string]any {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case durationMessage:
			return map[string]any{"type": "string"}
		case boolMessage:
			return map[string]any{"type": "boolean"}
		case uint32Message:
			return map[string]any{"type": "integer"}
		case doubleMessage:
			return map[string]any{"type": "number"}
		}
		return protoSchema(fd.Message(), supported)
	case protoreflect.BoolKind:
		return map[string]any{"type": "boolean"}
	case protoreflect.EnumKind:
		var names []any
		for i := range fd.Enum().Values().Len() {
			names = append(names, string(fd.Enum().Values().Get(i).Name()))
		}
		return map[string]any{"type": "string", "enum": names}
	case protoreflect.Int32Kind, protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		return map[string]any{"type": "integer"}
	case protoreflect.DoubleKind:
		return map[string]any{"type": "number"}
	case protoreflect.BytesKind:
		return map[string]any{"type": "string", "format": "byte"}
	default:
		return map[string]any{"type": "string"}
	}
}
