package snapshot

// AccessPolicy is an AuthorizationPolicy, or what is as one, that holds for a workload. Texts are exact, "prefix*", "*suffix" or "*", which is
// any.
type AccessPolicy struct {
	// Kind is the object's that it was made of: servicerolebinding, rbacconfig or clusterrbacconfig of Istio 1.0; empty for an
	// AuthorizationPolicy.
	Kind      string       `json:"kind,omitempty"`
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Action    AccessAction `json:"action"`
	// DryRun says that the verdict is counted and not carried out.
	DryRun bool `json:"dryRun,omitempty"`
	// Provider is the Name of the Authorizer that a CUSTOM policy asks. Where there is none of that name, what matches is refused.
	Provider string `json:"provider,omitempty"`
	// Rules: one that matches is enough. A policy without any matches nothing.
	Rules []AccessRule `json:"rules,omitempty"`
}

// AccessAction is what becomes of a request that matches.
type AccessAction string

// The actions.
const (
	AccessAllow AccessAction = "ALLOW"
	AccessDeny  AccessAction = "DENY"
	AccessAudit AccessAction = "AUDIT"
	// AccessCustom has an Authorizer decide about what matches.
	AccessCustom AccessAction = "CUSTOM"
)

// AccessRule matches where one of From, one of To and all of When do. What is empty matches.
type AccessRule struct {
	From []AccessSource    `json:"from,omitempty"`
	To   []AccessOperation `json:"to,omitempty"`
	When []AccessCondition `json:"when,omitempty"`
}

// AccessSource is who asks: all of its fields must match, in each one of the texts.
type AccessSource struct {
	Principals           []string `json:"principals,omitempty"` // without spiffe://
	NotPrincipals        []string `json:"notPrincipals,omitempty"`
	RequestPrincipals    []string `json:"requestPrincipals,omitempty"`
	NotRequestPrincipals []string `json:"notRequestPrincipals,omitempty"`
	Namespaces           []string `json:"namespaces,omitempty"`
	NotNamespaces        []string `json:"notNamespaces,omitempty"`
	ServiceAccounts      []string `json:"serviceAccounts,omitempty"` // <namespace>/<name>
	NotServiceAccounts   []string `json:"notServiceAccounts,omitempty"`
	TrustDomains         []string `json:"trustDomains,omitempty"`
	NotTrustDomains      []string `json:"notTrustDomains,omitempty"`
	IPBlocks             []string `json:"ipBlocks,omitempty"` // addresses and CIDR
	NotIPBlocks          []string `json:"notIpBlocks,omitempty"`
	RemoteIPBlocks       []string `json:"remoteIpBlocks,omitempty"`
	NotRemoteIPBlocks    []string `json:"notRemoteIpBlocks,omitempty"`
}

// AccessOperation is what is asked for, as AccessSource.
type AccessOperation struct {
	Hosts      []string `json:"hosts,omitempty"` // with a port, or ":*", where it matters
	NotHosts   []string `json:"notHosts,omitempty"`
	Ports      []string `json:"ports,omitempty"`
	NotPorts   []string `json:"notPorts,omitempty"`
	Methods    []string `json:"methods,omitempty"`
	NotMethods []string `json:"notMethods,omitempty"`
	Paths      []string `json:"paths,omitempty"` // texts, and templates with {*} and {**}
	NotPaths   []string `json:"notPaths,omitempty"`
}

// AccessCondition is about one attribute.
type AccessCondition struct {
	// Attribute is such as request.headers or source.ip; Names are those in the brackets behind it.
	Attribute string   `json:"attribute"`
	Names     []string `json:"names,omitempty"`
	Values    []string `json:"values,omitempty"`
	NotValues []string `json:"notValues,omitempty"`
}

// Authorizer is a service that is asked about requests: by Envoy's protocol of gRPC, or by a request of HTTP like the one in
// question.
type Authorizer struct {
	Name string `json:"name"`
	// Host and Port are a service's of the snapshot.
	Host string `json:"host"`
	Port uint16 `json:"port"`
	GRPC bool   `json:"grpc,omitempty"`
	// Timeout bounds the answer; none in time is as an error.
	Timeout Duration `json:"timeout"`
	// FailOpen lets pass what it can't be asked about, else that is answered with StatusOnError.
	FailOpen      bool `json:"failOpen,omitempty"`
	StatusOnError int  `json:"statusOnError"`
	// Body says that it is sent the request's body.
	Body *AuthorizerBody `json:"body,omitempty"`

	// What follows is for HTTP. Headers are names, "prefix*" and "*suffix", in small letters.
	PathPrefix      string   `json:"pathPrefix,omitempty"`
	RequestHeaders  []string `json:"requestHeaders,omitempty"`  // that it is sent
	AddHeaders      []Field  `json:"addHeaders,omitempty"`      // that it is sent besides
	UpstreamHeaders []string `json:"upstreamHeaders,omitempty"` // of its consent that the request gets
	AllowHeaders    []string `json:"allowHeaders,omitempty"`    // of its consent that the response gets
	DenyHeaders     []string `json:"denyHeaders,omitempty"`     // of its refusal that the client gets; empty is all
}

// AuthorizerBody is how much of a body an Authorizer is sent.
type AuthorizerBody struct {
	MaxBytes uint32 `json:"maxBytes"`
	// Partial has it sent the beginning of a longer one, which is refused else.
	Partial bool `json:"partial,omitempty"`
	// Raw sends it as bytes, and not as a text of UTF-8.
	Raw bool `json:"raw,omitempty"`
}
