package snapshot

// Usage is the part of a snapshot that mixer compiles: what of its traffic is denied, counted, limited and logged by the policies of Mixer.
type Usage struct {
	// Version is the digest of everything else; Seal sets it.
	Version string `json:"version"`
	// Rules are those of config.istio.io, in the order in which what they refuse is told.
	Rules []MixerRule `json:"rules,omitempty"`
	// RateLimits are in the order in which a request is counted.
	RateLimits []RateLimit `json:"rateLimits,omitempty"`
}

// Seal sets s.Version to the digest of the rest.
func (s *Usage) Seal() (err error) {
	s.Version = ""
	s.Version, err = digest(s)
	return err
}

// Digest is the Version.
func (s *Usage) Digest() string { return s.Version }
