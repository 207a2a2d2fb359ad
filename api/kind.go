package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is one kind of object, under all the versions it is served as.
type Kind struct {
	Group string
	// Versions are aliases of one stored object, the preferred first.
	Versions   []string
	Kind       string
	Plural     string
	Singular   string
	ShortNames []string
	Categories []string
	// Columns are what a table shows between NAME and AGE.
	Columns []Column

	// bare says that a spec may be missing, as that of a checknothing.
	bare bool
	// body are the fields of an object that has no spec, as a Secret. They are decodeSpec's then, which may change them.
	body []string

	decodeSpec func(spec map[string]any) (any, Problems)
	schema     func() map[string]any
	validate   func(*Object) Problems
}

// Column is one column of a table.
type Column struct {
	Name        string
	Description string
	// Cell is the column's value.
	Cell func(*Object) any
}

// listCell shows a list as kubectl shows those of a custom resource.
func listCell(list []string) any {
	if len(list) == 0 {
		return ""
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// Resource is the group and the plural.
func (k *Kind) Resource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Plural}
}

// APIVersion is the preferred one, under which objects are stored.
func (k *Kind) APIVersion() string {
	return schema.GroupVersion{Group: k.Group, Version: k.Versions[0]}.String()
}

// In reports whether k is one of kinds.
func (k *Kind) In(kinds []*Kind) bool {
	return slices.ContainsFunc(kinds, func(other *Kind) bool { return other.Group == k.Group && other.Kind == k.Kind })
}

// Body are the fields of an object that its Schema describes where it has no spec; nil for a spec.
func (k *Kind) Body() []string { return k.body }

// Kinds are all the kinds there are.
func Kinds() []*Kind { return slices.Concat(Networking(), Core(), Security(), Config()) }

// Networking are the kinds that pilot holds.
func Networking() []*Kind { return append(networkingKinds(), RolloutKind()) }

// coreVersion is the apiVersion of Kubernetes' own group, which has no name.
const coreVersion = "v1"

// Find is the kind that an object names by apiVersion and kind. Its error says what there is instead.
func Find(kinds []*Kind, apiVersion, kind string) (*Kind, error) {
	group, version, ok := strings.Cut(apiVersion, "/")
	if apiVersion == coreVersion {
		group, version, ok = "", apiVersion, true
	}
	if apiVersion == "" || !ok {
		return nil, Problem{Path: Path{"apiVersion"}, Detail: fmt.Sprintf("%q is none of this mesh's, want one of %s", apiVersion, apiVersions(kinds))}
	}
	var others []string
	for _, k := range kinds {
		if k.Group != group {
			continue
		}
		others = append(others, k.Kind)
		if k.Kind != kind {
			continue
		}
		if !slices.Contains(k.Versions, version) {
			return nil, Problem{Path: Path{"apiVersion"}, Detail: fmt.Sprintf("%s has no version %q, want one of %s", k.Kind, version, strings.Join(k.Versions, ", "))}
		}
		return k, nil
	}
	if len(others) == 0 && group == "" {
		return nil, Problem{Path: Path{"apiVersion"}, Detail: fmt.Sprintf("%q is none of this mesh's, want one of %s", apiVersion, apiVersions(kinds))}
	}
	if len(others) == 0 {
		return nil, Problem{Path: Path{"apiVersion"}, Detail: fmt.Sprintf("group %s is not supported yet, want one of %s", group, apiVersions(kinds))}
	}
	if detail := notBuilt(kind); group == ConfigGroup && detail != "" {
		return nil, Problem{Path: Path{"kind"}, Detail: detail}
	}
	slices.Sort(others)
	return nil, Problem{Path: Path{"kind"}, Detail: fmt.Sprintf("%q of %s is not supported yet, want one of %s", kind, cmp.Or(group, coreVersion), strings.Join(others, ", "))}
}

func apiVersions(kinds []*Kind) string {
	var all []string
	for _, k := range kinds {
		if v := k.APIVersion(); !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return strings.Join(all, ", ")
}
