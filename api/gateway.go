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
	checkLabels(&ps, Path{"spec", "selector"}, gw.Selector)
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
			if ns != "*" && ns != "." && (strings.Contains(ns, ".") || checkHost(ns) != "") {
				ps.invalid(path.At("hosts", j), fmt.Sprintf("want a namespace, *, or . before the /, got %q", host))
			}
			if msg := checkHostOrWildcard(name); msg != "" {
				ps.invalid(path.At("hosts", j), msg)
			}
		}
	}
	return ps
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
	const protocols = "HTTP, HTTP2, GRPC, TCP or TLS"
	switch p := strings.ToUpper(port.Protocol); p {
	case "HTTP", "HTTP2", "GRPC":
		if tls != nil && !tls.HttpsRedirect {
			ps.invalid(path.At("tls"), "want none for protocol "+p+", but for httpsRedirect: true")
		}
	case "TCP":
		if tls != nil {
			ps.invalid(path.At("tls"), "want none for protocol TCP")
		}
	case "TLS":
		switch {
		case tls == nil:
			ps.required(path.At("tls", "mode"), "want PASSTHROUGH")
		case tls.HttpsRedirect:
			ps.invalid(path.At("tls", "httpsRedirect"), "want it for protocol HTTP only")
		case tls.Mode != networking.ServerTLSSettings_PASSTHROUGH:
			ps.unsupported(path.At("tls", "mode"), tls.Mode.String())
		}
	case "":
		ps.required(path.At("port", "protocol"), "want "+protocols)
	case "HTTPS", "GRPC-WEB", "MONGO":
		ps.unsupported(path.At("port", "protocol"), p)
	default:
		ps.invalid(path.At("port", "protocol"), fmt.Sprintf("want %s, got %q", protocols, port.Protocol))
	}
}
