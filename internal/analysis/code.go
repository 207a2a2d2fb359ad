// Package analysis is what the planes tell people about their configuration: problems, each with a code, a severity, the
// object and the path of the field.
package analysis

// Problem is something in the configuration that can't be done as it is written. It does not keep the rest from being
// done.
type Problem struct {
	// Code is the message's code; Severity follows from it.
	Code     Code   `json:"code"`
	Resource string `json:"resource"` // virtualservice/default/reviews
	Path     string `json:"path"`     // spec.http[0].route[0].destination.subset
	Detail   string `json:"message"`
}

// String is "<path>: <detail>", as a warning to whoever writes the object.
func (p Problem) String() string { return p.Path + ": " + p.Detail }

// Code is what kind of problem a Problem is, by Istio's numbers where it is one of Istio's
// (https://istio.io/latest/docs/reference/config/analysis/).
type Code string

// The codes.
const (
	SchemaValidationError       Code = "IST0106"
	ReferencedResourceNotFound  Code = "IST0101"
	ConflictingMeshGatewayHosts Code = "IST0109"
	ConflictingSidecars         Code = "IST0110"
	MultipleSidecars            Code = "IST0111"
	DestinationPortRequired     Code = "IST0112"
	SeveralServices             Code = "IST0116"
	PortNameNotConventional     Code = "IST0118"
	InvalidRegexp               Code = "IST0122"
	NoMatchingWorkloads         Code = "IST0127"
	NoServerVerification        Code = "IST0128"
	NoServerVerificationAtPort  Code = "IST0129"
	UnreachableRule             Code = "IST0130"
	IneffectiveMatch            Code = "IST0131"
	HostNotFoundInGateway       Code = "IST0132"
	SchemaWarning               Code = "IST0133"
	EntryAddressesRequired      Code = "IST0134"
	ConflictingPorts            Code = "IST0137"
	GatewayDuplicateCertificate Code = "IST0138"
	RulesNotForGateway          Code = "IST0140"
	ReservedUser                Code = "IST0144"
	ConflictingGateways         Code = "IST0145"
	ExternalNamePort            Code = "IST0150"
	InvalidGatewayCredential    Code = "IST0161"
	GatewayPortNotPublished     Code = "IST0162"
	SubsetSelectsNothing        Code = "IST0173"
	UnknownDestinationRuleHost  Code = "IST0174"
	// KeysNotFetched has no number of Istio's, which does not tell.
	KeysNotFetched Code = "CMP0001"
)

// Severity is how bad a problem is.
type Severity string

// The severities, as Istio has them.
const (
	Error   Severity = "Error"
	Warning Severity = "Warning"
	Info    Severity = "Info"
)

// Severity is that of Istio's message. An expression that is none is an Error, since the mesh refuses it.
func (c Code) Severity() Severity {
	switch c {
	case SchemaValidationError, InvalidRegexp, ReferencedResourceNotFound, ConflictingMeshGatewayHosts, ConflictingSidecars, MultipleSidecars, DestinationPortRequired, ConflictingGateways, InvalidGatewayCredential, SubsetSelectsNothing:
		return Error
	case PortNameNotConventional, IneffectiveMatch:
		return Info
	}
	return Warning
}
