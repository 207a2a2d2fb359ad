package compile

// Code is what kind of problem a Problem is, by Istio's numbers where it is one of Istio's
// (https://istio.io/latest/docs/reference/config/analysis/).
type Code string

// The codes.
const (
	SchemaValidationError       Code = "IST0106"
	ReferencedResourceNotFound  Code = "IST0101"
	ConflictingMeshGatewayHosts Code = "IST0109"
	DestinationPortRequired     Code = "IST0112"
	PortNameNotConventional     Code = "IST0118"
	UnreachableRule             Code = "IST0130"
	IneffectiveMatch            Code = "IST0131"
	HostNotFoundInGateway       Code = "IST0132"
	SchemaWarning               Code = "IST0133"
	ConflictingGateways         Code = "IST0145"
	GatewayPortNotPublished     Code = "IST0162"
	SubsetSelectsNothing        Code = "IST0173"
	UnknownDestinationRuleHost  Code = "IST0174"
)

// Severity is how bad a problem is.
type Severity string

// The severities, as Istio has them.
const (
	Error   Severity = "Error"
	Warning Severity = "Warning"
	Info    Severity = "Info"
)

// Severity is that of Istio's message.
func (c Code) Severity() Severity {
	switch c {
	case SchemaValidationError, ReferencedResourceNotFound, ConflictingMeshGatewayHosts, DestinationPortRequired, ConflictingGateways, SubsetSelectsNothing:
		return Error
	case PortNameNotConventional, IneffectiveMatch:
		return Info
	}
	return Warning
}
