package compile

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// tlsServer adds a server that ends TLS to a gateway's port. A host that an older server of the port has is left to that.
func (c *compiler) tlsServer(out *snapshot.GatewayServer, gateway *api.Object, i int, server *networking.Server) {
	path := fmt.Sprintf("spec.servers[%d]", i)
	s := snapshot.TLSServer{
		Name:     strings.Join([]string{strings.ToLower(server.Port.Protocol), fmt.Sprint(server.Port.Number), server.Port.Name, gateway.Meta.Name, gateway.Meta.Namespace}, "."),
		Protocol: mesh.ProtocolTCP, Resource: gateway.String() + " " + path,
		TLS: c.serverTLS(gateway, path+".tls", server.Tls),
	}
	for j, host := range server.Hosts {
		_, name := api.SplitGatewayHost(host)
		name = strings.ToLower(name)
		if taken := slices.IndexFunc(out.TLSServers, func(other snapshot.TLSServer) bool { return slices.Contains(other.ServerNames, name) }); taken >= 0 {
			c.report(analysis.ConflictingGateways, gateway, fmt.Sprintf("%s.hosts[%d]", path, j), fmt.Sprintf("%s has port %d for %s already; this server is not used for it", out.TLSServers[taken].Resource, out.Port, name))
			continue
		}
		s.ServerNames = append(s.ServerNames, name)
	}
	if len(s.ServerNames) == 0 {
		return
	}
	slices.Sort(s.ServerNames)
	s.ServerNames = slices.Compact(s.ServerNames)
	if strings.EqualFold(server.Port.Protocol, "HTTPS") {
		s.Protocol = mesh.ProtocolHTTP
		routes := map[string][]snapshot.Route{}
		c.serverRoutes(routes, gateway, server)
		s.VirtualHosts = c.gatewayHosts(routes)
	} else {
		s.TCPRoutes = c.serverTCPRoutes(gateway, server)
	}
	out.TLSServers = append(out.TLSServers, s)
}

func (c *compiler) serverTLS(gateway *api.Object, path string, t *networking.ServerTLSSettings) snapshot.EdgeTLS {
	out := snapshot.EdgeTLS{
		Mode: snapshot.EdgeTLSMode(t.Mode.String()), MinVersion: tlsVersion(t.MinProtocolVersion), MaxVersion: tlsVersion(t.MaxProtocolVersion),
	}
	for _, name := range t.CipherSuites {
		if id := api.CipherSuite(name); id != 0 && !slices.Contains(out.CipherSuites, id) {
			out.CipherSuites = append(out.CipherSuites, id)
		}
	}
	if t.Mode != networking.ServerTLSSettings_SIMPLE {
		out.SubjectAltNames, out.SPKI = t.SubjectAltNames, t.VerifyCertificateSpki
		for _, sum := range t.VerifyCertificateHash {
			out.Hashes = append(out.Hashes, strings.ToLower(strings.ReplaceAll(sum, ":", "")))
		}
	}
	secret := func(field, name string) snapshot.Credential {
		return snapshot.Credential{Secret: c.needSecret(gateway, path+"."+field, name)}
	}
	switch {
	case t.Mode == networking.ServerTLSSettings_ISTIO_MUTUAL:
		return out
	case t.CredentialName != "":
		out.Certificates = []snapshot.Credential{secret("credentialName", t.CredentialName)}
	case len(t.CredentialNames) > 0:
		for i, name := range t.CredentialNames {
			out.Certificates = append(out.Certificates, secret(fmt.Sprintf("credentialNames[%d]", i), name))
		}
	case len(t.TlsCertificates) > 0:
		for _, pair := range t.TlsCertificates {
			out.Certificates = append(out.Certificates, snapshot.Credential{CertificateFile: pair.ServerCertificate, KeyFile: pair.PrivateKey})
		}
	default:
		out.Certificates = []snapshot.Credential{{CertificateFile: t.ServerCertificate, KeyFile: t.PrivateKey}}
	}
	switch {
	case t.Mode == networking.ServerTLSSettings_SIMPLE:
	case t.CaCertificates != "":
		out.CA = snapshot.Credential{CAFile: t.CaCertificates}
	case t.CaCertCredentialName != "":
		out.CA = secret("caCertCredentialName", t.CaCertCredentialName)
	default:
		out.CA = snapshot.Credential{Secret: out.Certificates[0].Secret}
	}
	return out
}

// tlsVersion is the number of a version of TLS; 0 for the default.
func tlsVersion(v networking.ServerTLSSettings_TLSProtocol) uint16 {
	if v == networking.ServerTLSSettings_TLS_AUTO {
		return 0
	}
	return 0x0300 + uint16(v) //nolint:gosec // an enum: TLSV1_0 is 1
}
