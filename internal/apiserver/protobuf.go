package apiserver

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// protobufMedia is how kubectl create sends the kinds of Kubernetes' own group, whatever the server says of itself
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding). Of those only Secret can be written.
const protobufMedia = "application/vnd.kubernetes.protobuf"

var errProtobuf = errors.New("malformed protobuf")

// decodeSecret is a Secret in protobuf as the same in JSON.
func decodeSecret(raw []byte) (map[string]any, error) {
	raw, ok := bytes.CutPrefix(raw, []byte("k8s\x00"))
	if !ok {
		return nil, errProtobuf
	}
	envelope, err := protoFields(raw)
	if err != nil {
		return nil, err
	}
	meta, err := protoFields(envelope.last(1))
	if err != nil {
		return nil, err
	}
	out := map[string]any{"apiVersion": string(meta.last(1)), "kind": string(meta.last(2))}
	if out["kind"] != "Secret" {
		return nil, fmt.Errorf("a %q in protobuf can't be read, want a Secret, or JSON", out["kind"])
	}
	secret, err := protoFields(envelope.last(2))
	if err != nil {
		return nil, err
	}
	if out["metadata"], err = protoMeta(secret.last(1)); err != nil {
		return nil, err
	}
	if out["data"], err = protoMap(secret[2], base64.StdEncoding.EncodeToString); err != nil {
		return nil, err
	}
	text := func(b []byte) string { return string(b) }
	if out["stringData"], err = protoMap(secret[4], text); err != nil {
		return nil, err
	}
	if t := secret.last(3); len(t) > 0 {
		out["type"] = string(t)
	}
	return out, nil
}

// protoMeta is an ObjectMeta, as far as a writer says anything in it.
func protoMeta(raw []byte) (map[string]any, error) {
	fields, err := protoFields(raw)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for number, name := range map[protowire.Number]string{1: "name", 2: "generateName", 3: "namespace", 5: "uid", 6: "resourceVersion"} {
		if v := fields.last(number); len(v) > 0 {
			out[name] = string(v)
		}
	}
	for number, name := range map[protowire.Number]string{11: "labels", 12: "annotations"} {
		m, err := protoMap(fields[number], func(b []byte) string { return string(b) })
		if err != nil {
			return nil, err
		}
		if len(m) > 0 {
			out[name] = m
		}
	}
	return out, nil
}

// protoMessage is the length-delimited fields of a message, by number.
type protoMessage map[protowire.Number][][]byte

func (f protoMessage) last(n protowire.Number) []byte {
	if all := f[n]; len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

func protoFields(raw []byte) (protoMessage, error) {
	out := protoMessage{}
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil, errProtobuf
		}
		raw = raw[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, raw); n < 0 {
				return nil, errProtobuf
			}
			raw = raw[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(raw)
		if n < 0 {
			return nil, errProtobuf
		}
		out[number] = append(out[number], value)
		raw = raw[n:]
	}
	return out, nil
}

// protoMap is a map field: entries of a key and a value.
func protoMap(entries [][]byte, value func([]byte) string) (map[string]any, error) {
	out := map[string]any{}
	for _, raw := range entries {
		entry, err := protoFields(raw)
		if err != nil {
			return nil, err
		}
		out[string(entry.last(1))] = value(entry.last(2))
	}
	return out, nil
}
