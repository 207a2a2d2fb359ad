package tlsconf

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"net/url"
	"strings"
)

// ForwardedCert is what X-Forwarded-Client-Cert says of a client's certificate, nil where it has shown none
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert).
func ForwardedCert(cs *tls.ConnectionState) []byte {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	parts := []string{
		"Hash=" + hex.EncodeToString(sum[:]),
		`Cert="` + strings.ReplaceAll(url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))), "+", "%20") + `"`,
		`Subject="` + quotable(leaf.Subject.String()) + `"`,
	}
	for _, u := range leaf.URIs {
		parts = append(parts, "URI="+printable(u.String()))
	}
	for _, name := range leaf.DNSNames {
		parts = append(parts, "DNS="+printable(name))
	}
	return []byte(strings.Join(parts, ";"))
}

// printable leaves nothing in a name that would end its part of the header, or the header.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`",;=`, r) {
			return -1
		}
		return r
	}, name)
}

// quotable is text for between quotes.
func quotable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)
}
