package snapshot

import "github.com/composure-mesh/composure/mesh"

// TLSServer is a server of a gateway's port that ends the TLS of its clients. It is chosen by the server name that a client
// asks for, the most specific first: an exact name, the longest "*.suffix", "*", which also takes a client that names none.
type TLSServer struct {
	// Name tells it from the others of the snapshot: https.443.shop.default.shop-gateway, as Istio names its routes.
	Name string `json:"name"`
	// ServerNames are lower-case, and no other server of the port has them.
	ServerNames []string `json:"serverNames"`
	// Protocol is what is inside: http or tcp.
	Protocol mesh.Protocol `json:"protocol"`
	TLS      EdgeTLS       `json:"tls"`
	// VirtualHosts are those of http, by Name, and TCPRoutes those of tcp.
	VirtualHosts []VirtualHost `json:"virtualHosts,omitempty"`
	TCPRoutes    []TCPRoute    `json:"tcpRoutes,omitempty"`
	// Resource is the object that it was written in, with the path of the server.
	Resource string `json:"resource,omitempty"`
}

// EdgeTLSMode says what a server asks of its clients.
type EdgeTLSMode string

// The modes (https://istio.io/latest/docs/reference/config/networking/gateway/#ServerTLSSettings-TLSmode).
const (
	ServerSimple         EdgeTLSMode = "SIMPLE"          // no certificate
	ServerMutual         EdgeTLSMode = "MUTUAL"          // a certificate by one of the CAs
	ServerOptionalMutual EdgeTLSMode = "OPTIONAL_MUTUAL" // none, or one by one of the CAs
	ServerMeshMutual     EdgeTLSMode = "ISTIO_MUTUAL"    // one of the mesh: the proxy shows its own
)

// EdgeTLS is how a server ends TLS.
type EdgeTLS struct {
	Mode EdgeTLSMode `json:"mode"`
	// Certificates are shown by what a client can verify, the first of those; none for ServerMeshMutual.
	Certificates []Credential `json:"certificates,omitempty"`
	// CA has the CAs of the clients; zero where none are asked for certificates.
	CA Credential `json:"ca,omitzero"`
	// MinVersion and MaxVersion are numbers of RFC 8446 section 4.2.1, such as 0x0303; 0 is the default: TLS 1.2, the latest.
	MinVersion uint16 `json:"minVersion,omitempty"`
	MaxVersion uint16 `json:"maxVersion,omitempty"`
	// CipherSuites are numbers of IANA's registry, for TLS 1.2 and before; empty is the default.
	CipherSuites []uint16 `json:"cipherSuites,omitempty"`
	// SubjectAltNames are names of which a client's certificate must have one; empty for any.
	SubjectAltNames []string `json:"subjectAltNames,omitempty"`
	// SPKI and Hashes pin a client's certificate: base64 of the SHA-256 of its public key, or lower-case hex of that of the
	// certificate. One of both lists must match, where there are any.
	SPKI   []string `json:"spki,omitempty"`
	Hashes []string `json:"hashes,omitempty"`
}

// ClientTLS is how a proxy speaks TLS to a server that is none of the mesh's
// (https://istio.io/latest/docs/reference/config/networking/destination-rule/#ClientTLSSettings).
type ClientTLS struct {
	// Certificate is our own; zero for none.
	Certificate Credential `json:"certificate,omitzero"`
	// CA verifies the server; zero is the public CAs.
	CA Credential `json:"ca,omitzero"`
	// ServerName is asked for, and verified; empty is the service's host, for one with a wildcard the request's.
	ServerName string `json:"serverName,omitempty"`
	// SubjectAltNames are verified instead, where there are any: the server's certificate must have one of them.
	SubjectAltNames []string `json:"subjectAltNames,omitempty"`
	// Unverified takes any certificate.
	Unverified bool `json:"unverified,omitempty"`
}

// Credential is where a certificate with its key, or CAs, come from: a Secret of the snapshot, or PEM files in the proxy's
// container. It is zero for nowhere.
type Credential struct {
	Secret string `json:"secret,omitempty"` // Secret.Name
	// CertificateFile has the leaf first; KeyFile its key.
	CertificateFile string `json:"certificateFile,omitempty"`
	KeyFile         string `json:"keyFile,omitempty"`
	CAFile          string `json:"caFile,omitempty"`
}

// Secret is the content of a secret that a Credential names.
type Secret struct {
	Name string `json:"name"` // namespace/name
	// In PEM; what is missing is empty.
	Certificate string `json:"certificate,omitempty"`
	PrivateKey  string `json:"privateKey,omitempty"`
	CA          string `json:"ca,omitempty"`
}

// WithoutKeys is s as people may see it.
func (s *Snapshot) WithoutKeys() *Snapshot {
	if len(s.Secrets) == 0 {
		return s
	}
	out := *s
	out.Secrets = make([]Secret, len(s.Secrets))
	for i, secret := range s.Secrets {
		if secret.PrivateKey != "" {
			secret.PrivateKey = "[removed]"
		}
		out.Secrets[i] = secret
	}
	return &out
}
