package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/jwt"
)

func newJWT(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "jwt", Short: "JSON Web Tokens, as the proxies see them"}
	c.AddCommand(newJWTVerify(env))
	return c
}

type jwtVerifyOptions struct {
	keys, at string
	rule     jwt.Rule
	output   format
}

func newJWTVerify(env *Env) *cobra.Command {
	o := &jwtVerifyOptions{}
	c := &cobra.Command{
		Use:   "verify TOKEN",
		Short: "Check a token against an issuer's keys, and show its claims",
		Long: "Checks the signature of a token against the public keys of a JWK set, then its times, and its issuer and audience where they are given.\n" +
			"TOKEN - is read from standard input. Exit code 0 and the claims, or 1 and the reason.",
		Example: "  meshctl jwt verify --jwks keys.json --issuer https://issuer.example \"$TOKEN\"",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(_ *cobra.Command, a []string) error { return runJWTVerify(env, o, a[0]) },
	}
	addOutput(c, &o.output, "json", "yaml")
	c.Flags().StringVar(&o.keys, "jwks", "", "file of the issuer's JWK set (RFC 7517)")
	c.Flags().StringVar(&o.rule.Issuer, "issuer", "", "what iss must be; default: anything")
	c.Flags().StringSliceVar(&o.rule.Audiences, "audience", nil, "one of these must be in aud; default: anything")
	c.Flags().StringVar(&o.at, "at", "", "the time to check exp and nbf for, as 2006-01-02T15:04:05Z; default: now")
	return c
}

func runJWTVerify(env *Env, o *jwtVerifyOptions, token string) error {
	if o.keys == "" {
		return withCode(exitUsage, errors.New("--jwks is missing: the file of the issuer's keys"))
	}
	now := time.Now()
	if o.at != "" {
		var err error
		if now, err = time.Parse(time.RFC3339, o.at); err != nil {
			return withCode(exitUsage, fmt.Errorf("--at: %w", err))
		}
	}
	b, err := os.ReadFile(o.keys)
	if err != nil {
		return err
	}
	set, err := jwt.ParseKeySet(b)
	if err != nil {
		return fmt.Errorf("%s: %w", o.keys, err)
	}
	for _, s := range set.Skipped {
		fmt.Fprintf(env.Err, "%s: not used: %s\n", o.keys, s)
	}
	if token == "-" {
		// More than any token may have; the verifier says so.
		if b, err = io.ReadAll(io.LimitReader(env.In, 64<<10)); err != nil {
			return err
		}
		token = strings.TrimSpace(string(b))
	}
	t, err := set.Verify(token, o.rule, now)
	if err != nil {
		return err
	}
	return encode(env.Out, o.output, t.Claims)
}
