package snapshot

// Security is the part of a snapshot that citadel compiles: who may call this workload, and how callers prove who they are.
type Security struct {
	// Version is the digest of everything else; Seal sets it.
	Version        string         `json:"version"`
	Authentication Authentication `json:"authentication,omitzero"`
	// TrustedProxies is how many proxies in front of the mesh's gateways are believed what they append to X-Forwarded-For.
	TrustedProxies int `json:"trustedProxies,omitempty"`
	// Access are the AuthorizationPolicies that hold for the workload, by namespace and name.
	Access []AccessPolicy `json:"access,omitempty"`
	// Authorizers are those that CUSTOM policies among them ask, by name.
	Authorizers []Authorizer `json:"authorizers,omitempty"`
}

// Seal sets s.Version to the digest of the rest.
func (s *Security) Seal() (err error) {
	s.Version = ""
	s.Version, err = digest(s)
	return err
}

// Digest is the Version.
func (s *Security) Digest() string { return s.Version }
