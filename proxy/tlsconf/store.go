// Package tlsconf makes the TLS configurations of what a snapshot names, and keeps them true to the certificates that they
// are made of: a secret that changes comes with a snapshot, files are looked at every second. A connection keeps the
// certificate that it began with.
package tlsconf

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// lookInterval is how often files are looked at.
const lookInterval = time.Second

// Store has the configurations of one proxy.
type Store struct {
	log         *slog.Logger
	identity    identity.Source // nil without
	trustDomain spiffeid.TrustDomain

	mu      sync.RWMutex
	secrets map[string]*snapshot.Secret
	servers map[string]*server // by name
	clients map[string]*client // by what they are made of
}

// server is the configuration of one TLSServer.
type server struct {
	of     snapshot.TLSServer // without routes
	config *tls.Config        // the last that could be made; nil before there is one
	shown  []tls.Certificate  // of config
	files  map[string]stamp   // that were read for it
	err    error              // why config is none, or not the newest
}

// New makes an empty Store. src may be nil for a proxy without an identity.
func New(src identity.Source, td spiffeid.TrustDomain, log *slog.Logger) *Store {
	return &Store{log: log, identity: src, trustDomain: td, servers: map[string]*server{}, clients: map[string]*client{}}
}

// Apply makes what a snapshot names. What can't be made says why when it is asked for; the rest works.
func (s *Store) Apply(snap *snapshot.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.secrets
	s.secrets = make(map[string]*snapshot.Secret, len(snap.Secrets))
	for i := range snap.Secrets {
		s.secrets[snap.Secrets[i].Name] = &snap.Secrets[i]
	}
	s.ageClients(before)
	next := map[string]*server{}
	for i := range snap.Gateways {
		for _, of := range snap.Gateways[i].TLSServers {
			of.VirtualHosts, of.TCPRoutes = nil, nil
			old := s.servers[of.Name]
			if old != nil && reflect.DeepEqual(old.of, of) && s.sameCredentials(before, credentialsOf(&of.TLS)...) {
				next[of.Name] = old // with the keys of its session tickets
				continue
			}
			n := &server{of: of}
			if old != nil && reflect.DeepEqual(old.of.TLS, of.TLS) && s.hasSecrets(credentialsOf(&of.TLS)) {
				n.config, n.shown = old.config, old.shown // until the new ones are good
			}
			s.make(n)
			next[of.Name] = n
		}
	}
	s.servers = next
}

func credentialsOf(t *snapshot.EdgeTLS) []snapshot.Credential {
	return append(slices.Clone(t.Certificates), t.CA)
}

// sameCredentials reports whether the secrets of credentials are as they were before.
func (s *Store) sameCredentials(before map[string]*snapshot.Secret, of ...snapshot.Credential) bool {
	return !slices.ContainsFunc(of, func(c snapshot.Credential) bool { return !reflect.DeepEqual(before[c.Secret], s.secrets[c.Secret]) })
}

func (s *Store) hasSecrets(of []snapshot.Credential) bool {
	return !slices.ContainsFunc(of, func(c snapshot.Credential) bool { return c.Secret != "" && s.secrets[c.Secret] == nil })
}

// make makes the configuration of a server anew. The one before stays where it can't be made; s.mu is held.
func (s *Store) make(n *server) {
	r := &reader{secrets: s.secrets, files: map[string]stamp{}}
	config, shown, err := s.serverConfig(r, &n.of)
	n.files = r.files
	switch {
	case err == nil:
		n.config, n.shown = config, shown
		if n.err != nil {
			s.log.Info("a tls server of a Gateway is open", "server", n.of.Resource, "hosts", n.of.ServerNames)
		}
	case n.config != nil:
		s.log.Warn("the new certificates of a Gateway can't be used, the ones before stay", "server", n.of.Resource, "error", err)
	default:
		s.log.Warn("a tls server of a Gateway is closed", "server", n.of.Resource, "hosts", n.of.ServerNames, "error", err)
	}
	n.err = err
}

var errNoServer = errors.New("the snapshot has no such server")

// Server is the configuration of a TLSServer, or why it is closed.
func (s *Store) Server(name string) (*tls.Config, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch n := s.servers[name]; {
	case n == nil:
		return nil, errNoServer
	case n.config == nil:
		return nil, n.err
	default:
		return n.config, nil
	}
}

// Run looks at files until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.look()
		}
	}
}

// look makes anew what is made of files that have changed.
func (s *Store) look() {
	s.mu.RLock()
	var changed []*server
	for _, n := range s.servers {
		if filesChanged(n.files) {
			changed = append(changed, n)
		}
	}
	stale := false
	for _, c := range s.clients {
		stale = stale || filesChanged(c.files)
	}
	s.mu.RUnlock()
	if len(changed) == 0 && !stale {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ageClients(s.secrets)
	for _, n := range changed {
		if s.servers[n.of.Name] == n {
			s.make(n)
		}
	}
}

func filesChanged(files map[string]stamp) bool {
	for path, was := range files {
		if is := stampOf(path); is.size != was.size || !is.modified.Equal(was.modified) {
			return true
		}
	}
	return false
}

// Status is one server as people are told of it, without keys.
type Status struct {
	Server       string        `json:"server"`
	Hosts        []string      `json:"hosts"`
	Mode         string        `json:"mode"`
	Open         bool          `json:"open"`
	Error        string        `json:"error,omitempty"` // why it is closed, or the newest certificates are not shown
	From         []string      `json:"from,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Certificate is one that is shown.
type Certificate struct {
	Names     []string  `json:"names"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// Status is of all servers, by name.
func (s *Store) Status() []Status {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := []Status{}
	for _, name := range slices.Sorted(maps.Keys(s.servers)) {
		n := s.servers[name]
		st := Status{Server: name, Hosts: n.of.ServerNames, Mode: string(n.of.TLS.Mode), Open: n.config != nil}
		if n.err != nil {
			st.Error = n.err.Error()
		}
		for _, c := range n.of.TLS.Certificates {
			st.From = append(st.From, from(c))
		}
		for _, c := range n.shown {
			st.Certificates = append(st.Certificates, Certificate{
				Names: namesOf(c.Leaf), Issuer: c.Leaf.Issuer.String(), Serial: fmt.Sprintf("%x", c.Leaf.SerialNumber),
				NotBefore: c.Leaf.NotBefore, NotAfter: c.Leaf.NotAfter,
			})
		}
		out = append(out, st)
	}
	return out
}

func from(c snapshot.Credential) string {
	if c.Secret != "" {
		return "secret " + c.Secret
	}
	return c.CertificateFile
}
