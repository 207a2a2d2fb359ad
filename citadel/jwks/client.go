package jwks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"

	"github.com/composure-mesh/composure/citadel/compile"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

// client fetches documents.
type client struct{ http *http.Client }

// newClient makes a client that connects only to addresses which refuse lets pass.
func newClient(refuse func(netip.Addr) error) *client {
	dialer := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return refuse(to.Addr().Unmap())
	}}
	return &client{&http.Client{
		// A key set moves by its issuer's word, not by a redirect of whoever answers.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		},
	}}
}

// refuseInside refuses addresses behind which there is no issuer but our own host, or a cloud's metadata. It looks at what is
// dialled, so that no name can stand for another address the second time.
func refuseInside(a netip.Addr) error {
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() || a.IsInterfaceLocalMulticast() {
		return fmt.Errorf("%s is no address of an issuer", a)
	}
	return nil
}

// get fetches the key set of a URI, which may be that of an issuer's OpenID configuration.
func (c *client) get(ctx context.Context, uri string) (string, error) {
	issuer, discovery := strings.CutSuffix(uri, compile.Discovery)
	if !discovery {
		return c.fetch(ctx, uri)
	}
	text, err := c.fetch(ctx, uri)
	if err != nil {
		return "", err
	}
	var conf struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal([]byte(text), &conf); err != nil {
		return "", fmt.Errorf("OpenID configuration: %w", err)
	}
	// https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfigurationValidation
	if strings.TrimSuffix(conf.Issuer, "/") != issuer {
		return "", fmt.Errorf("OpenID configuration is of issuer %q, want %q", conf.Issuer, issuer)
	}
	to, err := url.Parse(conf.JWKSURI)
	if err != nil || to.Host == "" || to.Scheme != "https" && (to.Scheme != "http" || strings.HasPrefix(uri, "https:")) {
		return "", fmt.Errorf("OpenID configuration: jwks_uri is %q, want a URL as safe as the issuer's", conf.JWKSURI)
	}
	return c.fetch(ctx, conf.JWKSURI)
}

func (c *client) fetch(ctx context.Context, uri string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answered %s, want 200 (redirects are not followed)", uri, resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", uri, err)
	}
	if len(raw) > maxAnswer {
		return "", fmt.Errorf("%s answered with more than %d bytes", uri, maxAnswer)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return "", errors.Join(fmt.Errorf("%s answered with no JSON", uri), err)
	}
	return compact.String(), nil
}
