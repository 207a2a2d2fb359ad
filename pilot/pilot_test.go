package pilot_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot"
)

// source is an identity that does not change.
type source struct{ m *identity.Material }

func (s source) Current() *identity.Material { return s.m }

// authority is a CA for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	a.cert = a.sign(template, template, &a.key.PublicKey)
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) issue(id string) source {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert, &key.PublicKey)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return source{&identity.Material{
		ID: spiffeid.RequireFromString(id), Roots: roots,
		Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
	}}
}

// keeper serves facts as the keeper does.
type keeper struct {
	facts chan mesh.Facts
}

func startKeeper(t *testing.T, socket string) *keeper {
	t.Helper()
	k := &keeper{facts: make(chan mesh.Facts, 8)}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/facts", func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case <-r.Context().Done():
				return
			case f := <-k.facts:
				if err := json.NewEncoder(w).Encode(f); err != nil {
					return
				}
				if err := http.NewResponseController(w).Flush(); err != nil {
					return
				}
			}
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return k
}

// harness is a pilot between a fake keeper and fake proxies.
type harness struct {
	t      *testing.T
	dir    string
	ca     *authority
	keeper *keeper
	admin  *http.Client
	stop   func()
}

func unixClient(socket string, config *tls.Config) *http.Client {
	var d net.Dialer
	return &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		TLSClientConfig: config,
	}}
}

func start(t *testing.T) *harness {
	t.Helper()
	dir, err := os.MkdirTemp("", "pilot") //nolint:usetesting // the path of a unix socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &harness{t: t, dir: dir, ca: newAuthority(t)}
	h.keeper = startKeeper(t, h.path("keeper.sock"))
	h.admin = unixClient(h.path("admin.sock"), nil)
	h.run()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *harness) path(name string) string { return filepath.Join(h.dir, name) }

// run starts a pilot, in the place of one that was stopped.
func (h *harness) run() {
	h.t.Helper()
	p, err := pilot.New(pilot.Config{
		TrustDomain: "cluster.local", KeeperSocket: h.path("keeper.sock"), MixerSocket: h.path("mixer.sock"), MeshSocket: h.path("pilot.sock"), AdminSocket: h.path("admin.sock"),
		StoreFile: h.path("store.db"), Identity: h.ca.issue("spiffe://cluster.local/ns/composure-system/sa/pilot"), Version: "test", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		h.admin.CloseIdleConnections()
		if err := <-done; err != nil {
			h.t.Errorf("pilot: %v", err)
		}
	}
}

func identityOf(workload string) string { return "spiffe://cluster.local/ns/default/sa/" + workload }

func workload(name, service, version, ip string) mesh.Workload {
	return mesh.Workload{
		Name: name, Namespace: "default", ServiceAccount: name, Identity: identityOf(name), Role: mesh.RoleApp, Services: []string{service},
		Labels: map[string]string{"version": version}, Meshed: true, Running: true, Addresses: []mesh.Address{{Network: "net", IPv4: ip}},
		Ports: []mesh.Port{{Number: 9080, Protocol: mesh.ProtocolHTTP}},
	}
}

func facts(revision uint64, workloads ...mesh.Workload) mesh.Facts {
	return mesh.Facts{Revision: revision, Project: "shop", Workloads: workloads}
}

// do sends one request and returns the answer's body, which must have the wanted code.
func (h *harness) do(c *http.Client, method, url, body string, code int) (string, http.Header) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.StatusCode != code {
		h.t.Fatalf("%s %s: %s, want %d: %s", method, url, resp.Status, code, raw)
	}
	return string(raw), resp.Header
}

func (h *harness) status() status.Report {
	h.t.Helper()
	body, _ := h.do(h.admin, http.MethodGet, "http://pilot/debug/proxies", "", http.StatusOK)
	var r status.Report
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		h.t.Fatal(err)
	}
	return r
}

// proxyClient is a fake proxy.
type proxyClient struct {
	h        *harness
	workload string
	http     *http.Client
	body     io.Closer
	lines    *bufio.Scanner
	have     string // the query that says what it has; empty for a proxy that knows no changes
	last     *snapshot.Snapshot
	line     []byte // the last
}

func (h *harness) client(id string) *http.Client {
	plane := spiffeid.RequireFromString("spiffe://cluster.local/ns/composure-system/sa/pilot")
	c := unixClient(h.path("pilot.sock"), identity.ClientTLS(h.ca.issue(id), identity.AnyOf(plane)))
	h.t.Cleanup(c.CloseIdleConnections)
	return c
}

func (h *harness) proxy(name string) *proxyClient {
	h.t.Helper()
	p := &proxyClient{h: h, workload: name, http: h.client(identityOf(name))}
	p.connect()
	return p
}

// connect opens the stream; until pilot has facts it is asked again, as a proxy does.
func (p *proxyClient) connect() {
	p.h.t.Helper()
	for {
		req, err := http.NewRequestWithContext(p.h.t.Context(), http.MethodGet, "https://pilot/v1/snapshots?workload="+p.workload+p.have, nil)
		if err != nil {
			p.h.t.Fatal(err)
		}
		resp, err := p.http.Do(req)
		if err != nil {
			p.h.t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			p.body, p.lines = resp.Body, bufio.NewScanner(resp.Body)
			p.lines.Buffer(nil, 1<<20)
			p.h.t.Cleanup(func() { _ = resp.Body.Close() })
			return
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			p.h.t.Fatalf("stream for %s: %s", p.workload, resp.Status)
		}
	}
}

// next is the next snapshot.
func (p *proxyClient) next() *snapshot.Snapshot {
	p.h.t.Helper()
	for p.lines.Scan() {
		if len(p.lines.Bytes()) == 0 {
			continue
		}
		var u snapshot.Update
		p.line = bytes.Clone(p.lines.Bytes())
		if err := json.Unmarshal(p.line, &u); err != nil {
			p.h.t.Fatal(err)
		}
		s, err := u.Apply(p.last)
		if err != nil {
			p.h.t.Fatal(err)
		}
		p.last = s
		return s
	}
	p.h.t.Fatalf("stream of %s ended: %v", p.workload, p.lines.Err())
	return nil
}

func (p *proxyClient) ack(s *snapshot.Snapshot, refusal string) {
	p.h.t.Helper()
	raw, err := json.Marshal(snapshot.Ack{Workload: p.workload, Version: s.Version, Error: refusal, Build: "v-test"})
	if err != nil {
		p.h.t.Fatal(err)
	}
	p.h.do(p.http, http.MethodPost, "https://pilot/v1/acks", string(raw), http.StatusNoContent)
}

const objects = "http://pilot/apis/networking.istio.io/v1/namespaces/default/"

const reviewsRule = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"reviews"},
"spec":{"host":"reviews","subsets":[{"name":"v1","labels":{"version":"v1"}}]}}`

func routesOf(s *snapshot.Snapshot, host string) []snapshot.Route {
	for _, vh := range s.VirtualHosts {
		if vh.Service == host+".default.svc.cluster.local" {
			return vh.Routes
		}
	}
	return nil
}

func TestPush(t *testing.T) {
	h := start(t)
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	web, reviews := h.proxy("web"), h.proxy("reviews-v1")
	first := web.next()
	if got := routesOf(first, "reviews"); len(got) != 1 || got[0].Name != "default" {
		t.Fatalf("routes of reviews are %v, want the default", got)
	}
	web.ack(first, "")
	reviews.ack(reviews.next(), "")

	// A change of the configuration reaches both.
	h.do(h.admin, http.MethodPost, objects+"destinationrules", reviewsRule, http.StatusCreated)
	second := web.next()
	if second.Version == first.Version || len(second.Services[0].Subsets) != 1 {
		t.Errorf("services are %+v, want the subset of the rule", second.Services)
	}
	web.ack(second, "no room for a subset")
	reviews.ack(reviews.next(), "")
	r := h.status()
	if len(r.Proxies) != 2 || r.Proxies[0].State != status.Synced || r.Proxies[1].State != status.Nack {
		t.Fatalf("proxies are %+v, want reviews-v1 SYNCED and web NACK", r.Proxies)
	}
	if p := r.Proxies[1]; p.Error != "no room for a subset" || p.Acked != first.Version || p.Refused != second.Version || p.Build != "v-test" {
		t.Errorf("web is %+v, want the refusal of %s and %s in force", p, second.Version, first.Version)
	}
	if len(r.Resources) != 1 || r.Resources[0].Applied != 1 || r.Resources[0].Proxies != 2 {
		t.Errorf("resources are %+v, want destinationrule/default/reviews applied by 1 of 2", r.Resources)
	}

	// So does a change of what runs, to those alone whom it concerns.
	away := workload("lonely", "lonely", "v1", "10.9.0.2")
	away.Addresses[0].Network = "other"
	unhealthy := workload("reviews-v1", "reviews", "v1", "10.0.0.2")
	unhealthy.Running = false
	h.keeper.facts <- facts(2, away, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.keeper.facts <- facts(3, away, unhealthy, workload("web", "web", "v1", "10.0.0.3"))
	third := web.next()
	if len(third.Services[0].Endpoints) != 0 {
		t.Errorf("endpoints are %v, want none: reviews has stopped", third.Services[0].Endpoints)
	}
	for _, w := range third.Workloads {
		if w.Name == "lonely" {
			t.Error("web was told of a workload that it shares no network with")
		}
	}
}

// TestChanges: a proxy that says what it has is sent what has changed, and gets the same as one that does not; after a
// restart of pilot it is not sent again what it has.
func TestChanges(t *testing.T) {
	h := start(t)
	both := facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.keeper.facts <- both
	plain := h.proxy("web")
	changes := &proxyClient{h: h, workload: "web", http: h.client(identityOf("web")), have: "&have="}
	changes.connect()
	same := func(what string) {
		t.Helper()
		if want, got := plain.next(), changes.next(); !reflect.DeepEqual(want, got) {
			t.Errorf("%s: the snapshot is %+v, want %+v", what, got, want)
		}
		if strings.Contains(string(plain.line), `"base"`) {
			t.Errorf("%s: %s was sent to a proxy that knows no changes", what, plain.line)
		}
	}
	same("at first")
	h.do(h.admin, http.MethodPost, objects+"destinationrules", reviewsRule, http.StatusCreated)
	same("a rule")
	if line := string(changes.line); !strings.Contains(line, `"base"`) || strings.Contains(line, "workloads") {
		t.Errorf("line is %s, want the change of a service alone", line)
	}
	moved := workload("web", "web", "v1", "10.0.0.9")
	h.keeper.facts <- facts(2, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), moved)
	same("its own address")
	h.stop()
	h.run()
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), moved)
	last := changes.last
	changes.have += last.Version
	changes.connect()
	if got := changes.next(); !reflect.DeepEqual(got, last) || len(changes.line) > 100 {
		t.Errorf("after a restart it is sent %s, want no change", changes.line)
	}
}

func TestForeignProxy(t *testing.T) {
	h := start(t)
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.proxy("web").next()
	thief := h.client(identityOf("web"))
	body, _ := h.do(thief, http.MethodGet, "https://pilot/v1/snapshots?workload=reviews-v1", "", http.StatusForbidden)
	if !strings.Contains(body, "the caller is "+identityOf("web")) {
		t.Errorf("answer is %s, want it to say who called", body)
	}
	h.do(thief, http.MethodPost, "https://pilot/v1/acks", `{"workload":"reviews-v1","version":"x"}`, http.StatusForbidden)
	h.do(thief, http.MethodGet, "https://pilot/v1/snapshots?workload=nobody", "", http.StatusNotFound)
	h.do(thief, http.MethodGet, "https://pilot/apis", "", http.StatusNotFound) // people's API is not here

	stranger := newAuthority(t)
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/composure-system/sa/pilot")
	c := unixClient(h.path("pilot.sock"), identity.ClientTLS(source{&identity.Material{
		Certificate: stranger.issue(identityOf("web")).m.Certificate, Roots: h.ca.issue(identityOf("web")).m.Roots,
	}}, identity.AnyOf(id)))
	defer c.CloseIdleConnections()
	if resp, err := c.Get("https://pilot/v1/snapshots?workload=web"); err == nil {
		_ = resp.Body.Close()
		t.Errorf("a certificate of another CA was answered %s", resp.Status)
	}
}

func TestRestart(t *testing.T) {
	h := start(t)
	both := facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.keeper.facts <- both
	web := h.proxy("web")
	web.next()
	h.do(h.admin, http.MethodPost, objects+"destinationrules", reviewsRule, http.StatusCreated)
	before := web.next()
	h.stop()
	h.run()
	h.keeper.facts <- both
	again := h.proxy("web")
	if got := again.next(); got.Version != before.Version {
		t.Errorf("version is %s after a restart, want %s as before", got.Version, before.Version)
	}
}

func TestWarnings(t *testing.T) {
	h := start(t)
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.proxy("web").next()
	vs := func(subset string) string {
		return fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1alpha3","kind":"VirtualService","metadata":{"name":"reviews"},
			"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews","subset":%q}}]}]}}`, subset)
	}
	h.do(h.admin, http.MethodPost, objects+"destinationrules", reviewsRule, http.StatusCreated)
	_, header := h.do(h.admin, http.MethodPost, objects+"virtualservices?dryRun=All", vs("v1"), http.StatusCreated)
	if got := header.Values("Warning"); len(got) > 0 {
		t.Errorf("warnings are %q, want none: the rule was applied just before", got)
	}
	_, header = h.do(h.admin, http.MethodPost, objects+"virtualservices", vs("v9"), http.StatusCreated)
	if got := header.Get("Warning"); !strings.Contains(got, `spec.http[0].route[0].destination.subset: no DestinationRule gives reviews.default.svc.cluster.local a subset \"v9\"`) {
		t.Errorf("warning is %q", got)
	}
}

// What is not applied is analyzed together with what is, and stays unapplied.
func TestAnalyzeTogether(t *testing.T) {
	h := start(t)
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.proxy("web").next()
	h.do(h.admin, http.MethodPost, objects+"destinationrules", reviewsRule, http.StatusCreated)
	const analysis = "http://pilot/debug/analysis"
	vs := func(subset string) string {
		return fmt.Sprintf(`[{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews","namespace":"default"},
			"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews","subset":%q}}]}]}}]`, subset)
	}
	before, _ := h.do(h.admin, http.MethodGet, analysis, "", http.StatusOK)
	if body, _ := h.do(h.admin, http.MethodPost, analysis, vs("v1"), http.StatusOK); body != before {
		t.Errorf("a rule for a subset that is applied: %s, want as without it: %s", body, before)
	}
	if body, _ := h.do(h.admin, http.MethodPost, analysis, vs("v9"), http.StatusOK); !strings.Contains(body, `"IST0101"`) {
		t.Errorf("a rule for no subset: %s", body)
	}
	if after, _ := h.do(h.admin, http.MethodGet, analysis, "", http.StatusOK); after != before {
		t.Errorf("afterwards there is %s, want %s", after, before)
	}
	h.do(h.admin, http.MethodPost, analysis, `[{"kind":"Pod"}]`, http.StatusUnprocessableEntity)
	h.do(h.admin, http.MethodPost, analysis, `{`, http.StatusBadRequest)
}

func TestCoreResources(t *testing.T) {
	h := start(t)
	sick := workload("reviews-v2", "reviews", "v2", "10.0.0.4")
	sick.Health = "unhealthy"
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), sick, workload("web", "web", "v1", "10.0.0.3"))
	h.proxy("web").next()
	if body, _ := h.do(h.admin, http.MethodGet, "http://pilot/api", "", http.StatusOK); !strings.Contains(body, `"APIVersions"`) {
		t.Errorf("/api, by which kubectl finds them, is %s", body)
	}
	body, _ := h.do(h.admin, http.MethodGet, "http://pilot/api/v1/namespaces/default/endpoints/reviews", "", http.StatusOK)
	for _, want := range []string{`"addresses":[{"ip":"10.0.0.2"`, `"notReadyAddresses":[{"ip":"10.0.0.4"`, `"port":9080`} {
		if !strings.Contains(body, want) {
			t.Errorf("want %s in %s", want, body)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://pilot/api/v1/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
	resp, err := h.admin.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var table bytes.Buffer
	if _, err := io.Copy(&table, resp.Body); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), `"cells":["reviews-v2","0/1","Running","10.0.0.4"`) {
		t.Errorf("table is %s", table.String())
	}
}

func TestStoreInUse(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for the lock")
	}
	h := start(t)
	_, err := pilot.New(pilot.Config{TrustDomain: "cluster.local", StoreFile: h.path("store.db"), Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("error is %v, want it to say that the store is held", err)
	}
}
