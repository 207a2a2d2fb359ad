package snapshot

// ValueType is the type of an attribute and of an expression, by the name that Istio's attribute manifests have for it
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.policy.v1beta1/#ValueType).
type ValueType string

// The types.
const (
	String       ValueType = "STRING"
	Int64        ValueType = "INT64"
	Double       ValueType = "DOUBLE"
	Bool         ValueType = "BOOL"
	Timestamp    ValueType = "TIMESTAMP"
	IPAddress    ValueType = "IP_ADDRESS"
	EmailAddress ValueType = "EMAIL_ADDRESS"
	URI          ValueType = "URI"
	DNSName      ValueType = "DNS_NAME"
	DurationType ValueType = "DURATION"
	StringMap    ValueType = "STRING_MAP"
)

// Expression is an expression over attributes that mixer has parsed and checked, so that a proxy need only evaluate it.
// Exactly one of Attribute, Function and Constant is set.
type Expression struct {
	Type      ValueType `json:"type"`
	Attribute string    `json:"attribute,omitempty"`
	// Function is an operator, as ==, or a function's name. Arguments are its operands; a method's first is the value
	// that it is called on.
	Function  string       `json:"function,omitempty"`
	Arguments []Expression `json:"arguments,omitempty"`
	// Constant is a value as text: a number in decimal, true, 1m30s.
	Constant *string `json:"constant,omitempty"`
}
