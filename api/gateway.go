package api

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// Gateway is the kind that opens ports of a gateway's proxy
// (https://istio.io/latest/docs/reference/config/networking/gateway/).
func Gateway() *Kind {
	return networkingKind(Kind{
		Kind: "Gateway", Plural: "gateways", Singular: "gateway", ShortNames: []string{"gw"},
		Columns:  []Column{{Name: "Servers", Description: "The ports and the hosts that they serve", Cell: gatewayServersCell}},
		validate: validateGateway,
	}, func() proto.Message { return &networking.Gateway{} }, gatewayFields())
}

func gatewayFields() fieldSet {
	return networkingFields(
		"Gateway.servers", "Gateway.selector",
		"Server.port", "Server.hosts", "Server.name", "Server.tls",
		"ServerTLSSettings.mode", "ServerTLSSettings.https_redirect",
		"ServerTLSSettings.server_certificate", "ServerTLSSettings.private_key", "ServerTLSSettings.ca_certificates",
		"ServerTLSSettings.credential_name", "ServerTLSSettings.credential_names", "ServerTLSSettings.ca_cert_credential_name",
		"ServerTLSSettings.tls_certificates", "ServerTLSSettings.TLSCertificate.server_certificate",
		"ServerTLSSettings.TLSCertificate.private_key", "ServerTLSSettings.TLSCertificate.ca_certificates",
		"ServerTLSSettings.subject_alt_names", "ServerTLSSettings.verify_certificate_spki", "ServerTLSSettings.verify_certificate_hash",
		"ServerTLSSettings.min_protocol_version", "ServerTLSSettings.max_protocol_version", "ServerTLSSettings.cipher_suites", "ServerTLSSettings.ca_crl",
		"Port.number", "Port.protocol", "Port.name",
	)
}

func gatewayServersCell(o *Object) any {
	var cells []string
	for _, s := range o.Spec.(*networking.Gateway).Servers {
		cells = append(cells, fmt.Sprintf("%d/%s:%s", s.Port.Number, s.Port.Protocol, strings.Join(s.Hosts, ",")))
	}
	return strings.Join(cells, " ")
}

// SplitGatewayHost parts a Gateway server's host into the namespace it admits VirtualServices from ("*" any, "."
// the Gateway's own) and the host.
func SplitGatewayHost(host string) (namespace, name string) {
	if ns, name, ok := strings.Cut(host, "/"); ok {
		return ns, name
	}
	return "*", host
}

func validateGateway(o *Object) Problems {
	gw := o.Spec.(*networking.Gateway)
	var ps Problems
	checkSelectorLabels(&ps, Path{"spec", "selector"}, gw.Selector)
	if !dnsLabel.MatchString(o.Meta.Name) {
		ps.invalid(Path{"metadata", "name"}, fmt.Sprintf("want a name without dots, got %q: VirtualServices name gateways as <namespace>/<name>", o.Meta.Name))
	}
	if len(gw.Servers) == 0 {
		ps.required(Path{"spec", "servers"}, "want at least one server")
	}
	names := map[string]int{}
	for i, server := range gw.Servers {
		path := Path{"spec", "servers", i}
		validateServerPort(&ps, path, server)
		if name := server.GetPort().GetName(); name != "" {
			if first, taken := names[name]; taken {
				ps.invalid(path.At("port", "name"), fmt.Sprintf("want a name of its own, %q is that of servers[%d]", name, first))
			} else {
				names[name] = i
			}
		}
		if len(server.Hosts) == 0 {
			ps.required(path.At("hosts"), `want at least one host, or "*"`)
		}
		for j, host := range server.Hosts {
			ns, name := SplitGatewayHost(host)
			if ns != "*" && ns != "." && !dnsLabel.MatchString(ns) {
				ps.invalid(path.At("hosts", j), fmt.Sprintf("want a namespace, *, or . before the /, got %q", host))
			}
			if msg := checkServerHost(name); msg != "" {
				ps.invalid(path.At("hosts", j), msg)
			}
		}
	}
	return ps
}

// checkServerHost says what is wrong with a host of a server, or "". As in Istio it is no short name, which is another one in
// each namespace; localhost is where a gateway of Compose is reached first.
func checkServerHost(host string) string {
	switch msg := checkHostOrWildcard(host); {
	case isAddress(host), host == "*", host == "localhost":
		return ""
	case msg == "" && !strings.Contains(host, "."):
		return fmt.Sprintf(`want a name with its domain, an address, localhost or "*", got %q`, host)
	default:
		return msg
	}
}

func validateServerPort(ps *Problems, path Path, server *networking.Server) {
	port := server.Port
	if port == nil {
		ps.required(path.At("port"), "want a port")
		return
	}
	if msg := checkPort(port.Number); msg != "" {
		ps.invalid(path.At("port", "number"), msg)
	}
	if port.Name == "" {
		ps.required(path.At("port", "name"), "want a name")
	}
	tls := server.Tls
	const protocols = "HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TCP, MONGO, MYSQL, REDIS or TLS"
	switch p := strings.ToUpper(port.Protocol); p {
	case "HTTP", "HTTP2", "GRPC", "GRPC-WEB":
		if tls != nil && !proto.Equal(tls, &networking.ServerTLSSettings{HttpsRedirect: tls.HttpsRedirect}) {
			ps.invalid(path.At("tls"), "want none for protocol "+p+", but for httpsRedirect: true")
		}
	case "TCP", "MONGO", "MYSQL", "REDIS":
		if tls != nil {
			ps.invalid(path.At("tls"), "want none for protocol "+p)
		}
	case "HTTPS", "TLS":
		if tls == nil {
			ps.required(path.At("tls", "mode"), "want SIMPLE, MUTUAL, OPTIONAL_MUTUAL, ISTIO_MUTUAL or PASSTHROUGH")
			return
		}
		validateServerTLS(ps, path.At("tls"), tls)
	case "":
		ps.required(path.At("port", "protocol"), "want "+protocols)
	default:
		ps.invalid(path.At("port", "protocol"), fmt.Sprintf("want %s, got %q", protocols, port.Protocol))
	}
}
