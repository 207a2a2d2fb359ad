package api

import (
	networking "istio.io/api/networking/v1"
)

// validateClientTLS checks the TLS of a traffic policy
// (https://istio.io/latest/docs/reference/config/networking/destination-rule/#ClientTLSSettings).
func validateClientTLS(ps *Problems, path Path, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	const inModes = "want it in mode SIMPLE or MUTUAL only"
	verifies := t.Mode == networking.ClientTLSSettings_SIMPLE || t.Mode == networking.ClientTLSSettings_MUTUAL
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"caCertificates", t.CaCertificates != ""}, {"credentialName", t.CredentialName != ""},
		{"subjectAltNames", len(t.SubjectAltNames) > 0}, {"insecureSkipVerify", t.InsecureSkipVerify.GetValue()},
	} {
		if f.set && !verifies {
			ps.invalid(path.At(f.name), inModes)
		}
	}
	if t.Sni != "" {
		if t.Mode == networking.ClientTLSSettings_DISABLE {
			ps.invalid(path.At("sni"), "want none in mode DISABLE")
		} else if msg := checkHost(t.Sni); msg != "" {
			ps.invalid(path.At("sni"), msg)
		}
	}
	files := t.ClientCertificate != "" || t.PrivateKey != ""
	switch {
	case files && t.Mode != networking.ClientTLSSettings_MUTUAL:
		ps.invalid(path.At("clientCertificate"), "want it in mode MUTUAL only")
	case files && t.CredentialName != "":
		ps.invalid(path.At("clientCertificate"), "want none beside credentialName")
	case files:
		checkPair(ps, path, "clientCertificate", t.ClientCertificate, t.PrivateKey)
	case t.Mode == networking.ClientTLSSettings_MUTUAL && t.CredentialName == "":
		ps.required(path.At("clientCertificate"), "want a client's certificate in mode MUTUAL: files in clientCertificate and privateKey, or credentialName")
	}
	if t.InsecureSkipVerify.GetValue() && verifies {
		const verified = "want none beside insecureSkipVerify: true, with which no certificate of a server is verified"
		if t.CaCertificates != "" {
			ps.invalid(path.At("caCertificates"), verified)
		}
		if t.CredentialName != "" && t.Mode == networking.ClientTLSSettings_SIMPLE { // in mode MUTUAL it has the client's certificate
			ps.invalid(path.At("credentialName"), verified)
		}
		if len(t.SubjectAltNames) > 0 {
			ps.invalid(path.At("subjectAltNames"), verified)
		}
	}
	if t.CredentialName != "" {
		checkCredential(ps, path.At("credentialName"), t.CredentialName)
		if t.CaCertificates != "" {
			ps.invalid(path.At("caCertificates"), "want none beside credentialName, whose Secret has the CAs")
		}
	}
}
