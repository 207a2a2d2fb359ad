package api

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"
)

// TerminatesTLS reports whether a Gateway's server ends the TLS of its clients.
func TerminatesTLS(s *networking.Server) bool {
	return s.Tls != nil && isTLS(s.Port) && s.Tls.Mode != networking.ServerTLSSettings_PASSTHROUGH
}

func isTLS(port *networking.Port) bool {
	p := strings.ToUpper(port.GetProtocol())
	return p == "HTTPS" || p == "TLS"
}

// validateServerTLS checks the settings of a server of protocol HTTPS or TLS
// (https://istio.io/latest/docs/reference/config/networking/gateway/#ServerTLSSettings).
func validateServerTLS(ps *Problems, path Path, t *networking.ServerTLSSettings) {
	certificates := validateServerCertificates(ps, path, t)
	switch t.Mode {
	case networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		ps.unsupported(path.At("mode"), t.Mode.String())
	case networking.ServerTLSSettings_PASSTHROUGH:
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if certificates != "" {
			ps.invalid(path.At(certificates), "want none in mode ISTIO_MUTUAL: the gateway shows its own of the mesh")
		}
		if t.CaCertificates != "" {
			ps.invalid(path.At("caCertificates"), "want none in mode ISTIO_MUTUAL: clients show certificates of the mesh")
		}
	default:
		if certificates == "" {
			ps.required(path.At("credentialName"), "want the name of a Secret in mode "+t.Mode.String()+", or files in serverCertificate and privateKey")
		}
		if asksClients(t) && t.CaCertificates == "" && t.CaCertCredentialName == "" && t.CredentialName == "" && len(t.CredentialNames) == 0 {
			ps.required(path.At("caCertificates"), "want the CAs of clients in mode "+t.Mode.String())
		}
	}
	switch {
	case t.CaCrl == "":
	case asksClients(t):
		ps.unsupported(path.At("caCrl"), "")
	case t.Mode == networking.ServerTLSSettings_SIMPLE && t.CredentialName == "":
		ps.invalid(path.At("caCrl"), "want it in mode MUTUAL or OPTIONAL_MUTUAL only, which ask clients for certificates")
	}
	for i, pin := range t.VerifyCertificateSpki {
		if b, err := base64.StdEncoding.DecodeString(pin); err != nil || len(b) != 32 {
			ps.invalid(path.At("verifyCertificateSpki", i), fmt.Sprintf("want base64 of a SHA-256 sum, got %q", pin))
		}
	}
	for i, pin := range t.VerifyCertificateHash {
		if b, err := hex.DecodeString(strings.ReplaceAll(pin, ":", "")); err != nil || len(b) != 32 {
			ps.invalid(path.At("verifyCertificateHash", i), fmt.Sprintf("want a SHA-256 sum in hex, got %q", pin))
		}
	}
	if t.MaxProtocolVersion != 0 && t.MinProtocolVersion > t.MaxProtocolVersion {
		ps.invalid(path.At("minProtocolVersion"), fmt.Sprintf("want at most maxProtocolVersion, %s, got %s", t.MaxProtocolVersion, t.MinProtocolVersion))
	}
}

func asksClients(t *networking.ServerTLSSettings) bool {
	return t.Mode == networking.ServerTLSSettings_MUTUAL || t.Mode == networking.ServerTLSSettings_OPTIONAL_MUTUAL
}

// UnusedTLS is what nothing comes of in the settings of a server, by the path of the field: Istio accepts it, and warns of
// some of it.
func UnusedTLS(t *networking.ServerTLSSettings) map[string]string {
	unused := map[string]string{}
	put := func(field string, set bool, why string) {
		if set {
			unused[field] = why
		}
	}
	put("httpsRedirect", t.HttpsRedirect, "it is not used: a server of protocol HTTP redirects")
	if t.CredentialName != "" {
		const why = "it is not used: the certificate and its key are those of credentialName"
		put("serverCertificate", t.ServerCertificate != "", why)
		put("privateKey", t.PrivateKey != "", why)
	}
	if t.Mode == networking.ServerTLSSettings_PASSTHROUGH {
		const why = "it is not used in mode PASSTHROUGH, which leaves TLS to the server behind the gateway"
		put("credentialName", t.CredentialName != "", why)
		put("credentialNames", len(t.CredentialNames) > 0, why)
		put("serverCertificate", t.ServerCertificate != "", why)
		put("tlsCertificates", len(t.TlsCertificates) > 0, why)
	}
	if !asksClients(t) {
		const why = "it is not used: only the modes MUTUAL and OPTIONAL_MUTUAL ask clients for certificates"
		put("caCertificates", t.CaCertificates != "", why)
		put("caCrl", t.CaCrl != "", why)
		put("caCertCredentialName", t.CaCertCredentialName != "", why)
		put("subjectAltNames", len(t.SubjectAltNames) > 0 && t.Mode != networking.ServerTLSSettings_ISTIO_MUTUAL, why)
		put("verifyCertificateSpki", len(t.VerifyCertificateSpki) > 0, why)
		put("verifyCertificateHash", len(t.VerifyCertificateHash) > 0, why)
	}
	for i, name := range t.CipherSuites {
		field := fmt.Sprintf("cipherSuites[%d]", i)
		put(field, CipherSuite(name) == 0, fmt.Sprintf("it is not used: want one of %s, got %q", strings.Join(sortedKeys(cipherSuites), ", "), name))
		put(field, slices.Index(t.CipherSuites, name) < i, fmt.Sprintf("%q is listed before", name))
	}
	return unused
}

// validateServerCertificates checks where the server's certificate comes from, and names the field; "" is nowhere.
func validateServerCertificates(ps *Problems, path Path, t *networking.ServerTLSSettings) string {
	var from []string
	if t.CredentialName != "" {
		from = append(from, "credentialName")
	}
	if len(t.CredentialNames) > 0 {
		from = append(from, "credentialNames")
	}
	switch {
	case t.ServerCertificate != "" && t.PrivateKey != "", t.CredentialName == "" && (t.ServerCertificate != "" || t.PrivateKey != ""):
		from = append(from, "serverCertificate")
		checkPair(ps, path, "serverCertificate", t.ServerCertificate, t.PrivateKey)
	}
	if len(t.TlsCertificates) > 0 {
		from = append(from, "tlsCertificates")
	}
	if len(from) == 0 {
		return ""
	}
	for _, other := range from[1:] {
		ps.invalid(path.At(other), "want none beside "+from[0])
	}
	if t.CredentialName != "" {
		checkCredential(ps, path.At("credentialName"), t.CredentialName)
	}
	for i, name := range t.CredentialNames {
		checkCredential(ps, path.At("credentialNames", i), name)
	}
	if t.CaCertCredentialName != "" {
		checkCredential(ps, path.At("caCertCredentialName"), t.CaCertCredentialName)
		if t.CaCertificates != "" {
			ps.invalid(path.At("caCertificates"), "want none beside caCertCredentialName")
		}
	}
	for i, c := range t.TlsCertificates {
		checkPair(ps, path.At("tlsCertificates", i), "serverCertificate", c.ServerCertificate, c.PrivateKey)
		if c.CaCertificates != "" {
			ps.unsupported(path.At("tlsCertificates", i, "caCertificates"), "")
		}
	}
	return from[0]
}

func checkPair(ps *Problems, path Path, field, certificate, key string) {
	if certificate == "" {
		ps.required(path.At(field), "want the path of a PEM file, since there is a privateKey")
	}
	if key == "" {
		ps.required(path.At("privateKey"), "want the path of a PEM file, since there is a "+field)
	}
}

// checkCredential checks the name of a Secret.
func checkCredential(ps *Problems, path Path, name string) {
	if checkHost(name) != "" || strings.ToLower(name) != name {
		ps.invalid(path, fmt.Sprintf("want the name of a Secret, got %q", name))
	}
}

// cipherSuites are those of TLS 1.2 and before that Istio names, by OpenSSL's names
// (https://www.openssl.org/docs/man1.1.1/man1/ciphers.html).
var cipherSuites = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA":                    tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    tls.TLS_RSA_WITH_AES_256_CBC_SHA,
	"DES-CBC3-SHA":                  tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA,
}

// CipherSuite is IANA's number of a cipher suite that OpenSSL names so; 0 for none.
func CipherSuite(name string) uint16 { return cipherSuites[name] }
