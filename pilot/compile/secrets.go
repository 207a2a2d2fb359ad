package compile

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"time"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// The keys of a Secret, as of Istio's own and of Kubernetes' type kubernetes.io/tls
// (https://istio.io/latest/docs/tasks/traffic-management/ingress/secure-ingress/#key-formats).
var (
	certificateKeys = []string{"cert", "tls.crt"}
	privateKeyKeys  = []string{"key", "tls.key"}
	caKeys          = []string{"cacert", "ca.crt"}
)

// caSuffix ends the name of the Secret that has the CAs for a Secret without.
const caSuffix = "-cacert"

// needSecret adds the Secret of the name, in the proxy's own namespace, to those that the proxy is given, and is its name
// there. It reports one that is missing or bad.
func (c *compiler) needSecret(by *api.Object, path, name string) string {
	full := c.proxy.Namespace + "/" + name
	if _, known := c.secretsNeeded[full]; known {
		return full
	}
	secret := c.secrets[full]
	ca := c.secrets[full+caSuffix]
	if secret == nil && ca == nil {
		c.report(analysis.ReferencedResourceNotFound, by, path, fmt.Sprintf("there is no Secret %s: what needs it is closed", full))
		return full
	}
	out := snapshot.Secret{Name: full}
	if secret != nil {
		out.Certificate, out.PrivateKey, out.CA = value(secret, certificateKeys), value(secret, privateKeyKeys), value(secret, caKeys)
	}
	if ca != nil {
		out.CA = cmp.Or(value(ca, caKeys), out.CA)
	}
	c.secretsNeeded[full] = out
	if secret != nil {
		if err := checkSecret(secret.Spec.(*api.Secret)); err != nil {
			c.report(analysis.InvalidGatewayCredential, by, path, fmt.Sprintf("Secret %s: %v", full, err))
		}
	}
	return full
}

func value(o *api.Object, keys []string) string {
	for _, key := range keys {
		if v, ok := o.Spec.(*api.Secret).Data[key]; ok {
			return string(v)
		}
	}
	return ""
}

// neededSecrets are those that needSecret was asked for, by name.
func (c *compiler) neededSecrets() []snapshot.Secret {
	var out []snapshot.Secret
	for _, name := range slices.Sorted(maps.Keys(c.secretsNeeded)) {
		out = append(out, c.secretsNeeded[name])
	}
	return out
}

// checkSecret says what is wrong with the certificates of a Secret that has any. It repeats nothing of them.
func checkSecret(s *api.Secret) error {
	get := func(keys []string) (string, []byte) {
		for _, key := range keys {
			if v, ok := s.Data[key]; ok {
				return key, v
			}
		}
		return "", nil
	}
	certName, cert := get(certificateKeys)
	keyName, key := get(privateKeyKeys)
	switch {
	case certName != "" && keyName == "":
		return fmt.Errorf("it has %s and no key: want key or tls.key", certName)
	case certName == "" && keyName != "":
		return fmt.Errorf("it has %s and no certificate: want cert or tls.crt", keyName)
	case certName != "":
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			return fmt.Errorf("%s and %s: %w", certName, keyName, err)
		}
	}
	if name, ca := get(caKeys); name != "" && !x509.NewCertPool().AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s: there is no certificate in it, want PEM", name)
	}
	return nil
}

// checkExpiry finds a certificate in the Secret of the name, in the proxy's namespace, that clients refuse by now.
func (c *compiler) checkExpiry(by *api.Object, path, name string) {
	secret := c.secrets[c.proxy.Namespace+"/"+name]
	if secret == nil || checkSecret(secret.Spec.(*api.Secret)) != nil {
		return // needSecret has said so
	}
	block, _ := pem.Decode([]byte(value(secret, certificateKeys)))
	if block == nil {
		return // CAs alone
	}
	if leaf, err := x509.ParseCertificate(block.Bytes); err == nil && time.Now().After(leaf.NotAfter) {
		c.report(analysis.InvalidGatewayCredential, by, path, fmt.Sprintf("the certificate in Secret %s/%s has expired at %s", c.proxy.Namespace, name, leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
}

// checkSecretObject says what is wrong with a Secret that somebody applies.
func (c *compiler) checkSecretObject(o *api.Object) {
	s := o.Spec.(*api.Secret)
	if err := checkSecret(s); err != nil {
		c.report(analysis.InvalidGatewayCredential, o, "data", err.Error())
	} else if value(o, certificateKeys) == "" && value(o, caKeys) == "" {
		c.report(analysis.InvalidGatewayCredential, o, "data", "it has neither a certificate (cert or tls.crt, with key or tls.key) nor CAs (cacert or ca.crt): nothing can use it")
	}
}

// checkClientSecrets says which Secrets of a DestinationRule no gateway can be given, and that sidecars are given none.
func (c *compiler) checkClientSecrets(o *api.Object, rule *networking.DestinationRule) {
	check := func(code analysis.Code, path string, t *networking.ClientTLSSettings) {
		if t.GetCredentialName() == "" {
			return
		}
		path += ".tls.credentialName"
		if rule.WorkloadSelector != nil {
			code = analysis.SchemaWarning // as in Istio, it is for workloads that somebody has chosen
		}
		c.report(code, o, path, "only gateways are given Secrets: what a sidecar sends there itself gets 503, for it want files in its container")
		for i := range c.facts.Workloads {
			if w := &c.facts.Workloads[i]; w.Role == mesh.RoleGateway {
				at := *c
				at.proxy = w
				at.needSecret(o, path, t.CredentialName)
				c.problems = at.problems
			}
		}
	}
	policy := func(path string, p *networking.TrafficPolicy) {
		check(analysis.NoServerVerification, path, p.GetTls())
		for i, port := range p.GetPortLevelSettings() {
			check(analysis.NoServerVerificationAtPort, fmt.Sprintf("%s.portLevelSettings[%d]", path, i), port.GetTls())
		}
	}
	policy("spec.trafficPolicy", rule.TrafficPolicy)
	for i, subset := range rule.Subsets {
		policy(fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), subset.TrafficPolicy)
	}
}
