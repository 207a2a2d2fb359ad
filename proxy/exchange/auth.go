package exchange

// Auth is what the JSON Web Token of a request says, which has been verified: what conditions and attributes call
// request.auth. It is made once for a token and shared by the requests that bring it, so nobody may change it.
type Auth struct {
	// Principal is <iss>/<sub>: request.auth.principal.
	Principal string
	// Audiences are those of aud: request.auth.audiences.
	Audiences []string
	// Presenter is azp: request.auth.presenter.
	Presenter string
	// Claims is the root of request.auth.claims.
	Claims *Claim
	// Raw is the payload as it was signed, JSON: Mixer's request.auth.raw_claims.
	Raw string
}

// Claim is one claim, as conditions see it: Istio's match texts and lists of texts, and no other type
// (https://istio.io/latest/docs/reference/config/security/conditions/).
type Claim struct {
	// Values are the text, or those of the list that are texts. Of one that is delimited by spaces, they are the words.
	Values []string
	// Fields are what is nested in an object.
	Fields map[string]*Claim
}

// At is the values of the claim at path, as request.auth.claims[a][b] has it; none where there is no such claim.
func (a *Auth) At(path []string) []string {
	if a == nil {
		return nil
	}
	c := a.Claims
	for _, name := range path {
		if c == nil {
			return nil
		}
		c = c.Fields[name]
	}
	if c == nil {
		return nil
	}
	return c.Values
}
