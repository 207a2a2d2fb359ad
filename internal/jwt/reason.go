package jwt

import (
	"errors"
	"fmt"
)

// Reason is why a token is refused, in the words that Envoy tells clients
// (https://github.com/envoyproxy/envoy/blob/main/source/common/jwt/status.cc). The error says more, for operators.
type Reason string

// The reasons.
const (
	Missing         Reason = "Jwt is missing"
	BadFormat       Reason = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	HeaderBase64    Reason = "Jwt header is an invalid Base64url encoded"
	HeaderJSON      Reason = "Jwt header is an invalid JSON"
	BadAlgorithm    Reason = "Jwt header [alg] is not supported"
	PayloadBase64   Reason = "Jwt payload is an invalid Base64url encoded"
	PayloadJSON     Reason = "Jwt payload is an invalid JSON"
	SignatureBase64 Reason = "Jwt signature is an invalid Base64url encoded"
	BadSignature    Reason = "Jwt verification fails"
	NoKey           Reason = "Jwks doesn't have key to match kid or alg from Jwt"
	NoKeys          Reason = "Jwks remote fetch is failed"
	UnknownIssuer   Reason = "Jwt issuer is not configured"
	BadAudience     Reason = "Audiences in Jwt are not allowed"
	Expired         Reason = "Jwt is expired"
	NotYet          Reason = "Jwt not yet valid"
)

// refusal is the error of a token that is refused.
type refusal struct {
	error
	reason Reason
}

func (r *refusal) Unwrap() error { return errors.Unwrap(r.error) }

func refuse(r Reason, format string, args ...any) error {
	return &refusal{fmt.Errorf(format, args...), r}
}

// Refuse is err as the refusal of a token for the given reason.
func Refuse(r Reason, err error) error { return &refusal{err, r} }

// ReasonOf is why a token was refused with err.
func ReasonOf(err error) Reason {
	var r *refusal
	if errors.As(err, &r) {
		return r.reason
	}
	return BadSignature
}
