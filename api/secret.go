package api

import (
	"encoding/base64"
	"fmt"
	"regexp"
)

// The types of Secret.
const (
	SecretOpaque = "Opaque"
	SecretTLS    = "kubernetes.io/tls"
)

// Secret is what a Secret holds. There is no stringData in it: that is turned into data as it is read.
type Secret struct {
	Type string
	Data map[string][]byte
}

// Core are the kinds of Kubernetes' own group that people apply. pilot holds them.
func Core() []*Kind { return []*Kind{SecretKind()} }

// SecretKind is Kubernetes' own Secret, for the certificates and keys that credentialName names
// (https://kubernetes.io/docs/concepts/configuration/secret/).
func SecretKind() *Kind {
	return &Kind{
		Versions: []string{"v1"}, Kind: "Secret", Plural: "secrets", Singular: "secret",
		Columns: []Column{
			{Name: "Type", Description: "What kind of secret it is", Cell: func(o *Object) any { return o.Spec.(*Secret).Type }},
			{Name: "Data", Description: "How many values it has", Cell: func(o *Object) any { return int64(len(o.Spec.(*Secret).Data)) }},
		},
		body:       []string{"type", "data", "stringData", "immutable"},
		decodeSpec: decodeSecret,
		schema: func() map[string]any {
			return map[string]any{"type": "object", "properties": map[string]any{
				"type":       map[string]any{"type": "string"},
				"data":       map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string", "format": "byte"}},
				"stringData": map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}},
			}}
		},
		validate: validateSecret,
	}
}

var secretKey = regexp.MustCompile(`^[-._a-zA-Z0-9]{1,253}$`)

// decodeSecret reads a Secret's fields and writes stringData into data, where it wins. No problem repeats a value.
func decodeSecret(content map[string]any) (any, Problems) {
	var ps Problems
	s := &Secret{Type: SecretOpaque, Data: map[string][]byte{}}
	if t, ok := content["type"]; ok && t != nil {
		if s.Type, ok = t.(string); !ok {
			ps.invalid(Path{"type"}, "want a string")
		}
	}
	if s.Type == "" {
		s.Type = SecretOpaque
	}
	if content["immutable"] == true {
		ps.unsupported(Path{"immutable"}, "")
	}
	delete(content, "immutable")
	data := secretValues(&ps, content, "data")
	for _, key := range sortedKeys(data) {
		value, err := base64.StdEncoding.DecodeString(data[key])
		if err != nil {
			ps.invalid(Path{"data", key}, "want base64: stringData takes text as it is")
		}
		s.Data[key] = value
	}
	for key, text := range secretValues(&ps, content, "stringData") {
		s.Data[key] = []byte(text)
	}
	delete(content, "stringData")
	content["type"] = s.Type
	stored := map[string]any{}
	for key, value := range s.Data {
		stored[key] = base64.StdEncoding.EncodeToString(value)
	}
	content["data"] = stored
	return s, ps
}

func secretValues(ps *Problems, content map[string]any, field string) map[string]string {
	values := map[string]string{}
	switch m := content[field].(type) {
	case nil:
	case map[string]any:
		for _, key := range sortedKeys(m) {
			text, ok := m[key].(string)
			switch {
			case !secretKey.MatchString(key):
				ps.invalid(Path{field, key}, "want a key of letters, digits, -, _ and .")
			case !ok && m[key] != nil:
				ps.invalid(Path{field, key}, "want a string")
			}
			values[key] = text
		}
	default:
		ps.invalid(Path{field}, "want an object of strings")
	}
	return values
}

func validateSecret(o *Object) Problems {
	s := o.Spec.(*Secret)
	var ps Problems
	for _, key := range []string{"ca.crl", "crl"} {
		if _, ok := s.Data[key]; ok {
			ps.unsupported(Path{"data", key}, "a list of revoked certificates")
		}
	}
	switch s.Type {
	case SecretOpaque:
	case SecretTLS:
		for _, key := range []string{"tls.crt", "tls.key"} {
			if _, ok := s.Data[key]; !ok {
				ps.required(Path{"data", key}, "want it in a secret of type "+SecretTLS)
			}
		}
	default:
		ps.invalid(Path{"type"}, fmt.Sprintf("want %s or %s, got %q", SecretTLS, SecretOpaque, s.Type))
	}
	return ps
}
