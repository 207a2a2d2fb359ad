package cli

import (
	"encoding/json"
	"maps"
	"slices"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// sortedValues are the different values of m.
func sortedValues(m map[string]string) []string { return slices.Compact(slices.Sorted(maps.Values(m))) }

func decodeRaw(raw []byte, v any) error {
	if len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, v)
}
