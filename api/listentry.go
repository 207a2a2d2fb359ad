package api

// ListEntry is an instance that is looked up in a list
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/templates/listentry/).
type ListEntry struct {
	Value string `json:"value"`
}

func listEntry() Template {
	return Template{Name: "listentry", plural: "listentries", Check: true, newParams: func() any { return &ListEntry{} }}
}
