package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot"
)

// Pilot in a big mesh: 1000 services of 5 workloads each, all in one network, and a VirtualService for each. Pilot is a
// process of its own; the keeper and the proxies are played by this one, over unix sockets and with the TLS that they
// really have. Every proxy sees all of the mesh, so that each change concerns each proxy: the worst case.
const (
	scaleServices  = 1000
	scaleReplicas  = 5
	scaleNamespace = "default"
)

// The design's limits.
const (
	mostToAll   = 1000 // ms from a change to the last of the proxies that has it
	mostPilotMB = 200
)

// scaleCase measures changes with so many proxies.
func scaleCase(proxies int) func(*bench) ([]row, error) {
	return func(b *bench) ([]row, error) {
		m, err := b.bigMesh(proxies)
		if err != nil {
			return nil, err
		}
		defer m.close()
		if err := m.applyAll(); err != nil {
			return nil, err
		}
		if err := m.connect(); err != nil {
			return nil, err
		}
		routes, err := m.changes(b.rounds, m.changeRoute)
		if err != nil {
			return nil, fmt.Errorf("change a route: %w", err)
		}
		endpoints, err := m.changes(b.rounds, m.changeEndpoint)
		if err != nil {
			return nil, fmt.Errorf("change an endpoint: %w", err)
		}
		memory, err := m.pilot.rss()
		if err != nil {
			return nil, err
		}
		return []row{
			limit("route_to_last_ms", routes.last, mostToAll),
			limit("endpoint_to_last_ms", endpoints.last, mostToAll),
			limit("pilot_cpu_ms_per_route", routes.cpu, mostToAll),
			limit("pilot_cpu_ms_per_endpoint", endpoints.cpu, mostToAll),
			limit("kb_to_a_proxy_per_route", routes.kilobytes, 1000),
			limit("kb_to_a_proxy_per_endpoint", endpoints.kilobytes, 1000),
			limit("pilot_rss_mb", memory, mostPilotMB),
		}, nil
	}
}

// scaleApply applies 1000 objects, one request each, while proxies hold their streams.
func scaleApply(b *bench) ([]row, error) {
	m, err := b.bigMesh(100)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.connect(); err != nil {
		return nil, err
	}
	cpu, err := m.pilot.cpu()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := m.applyAll(); err != nil {
		return nil, err
	}
	if err := m.settled(); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	after, err := m.pilot.cpu()
	if err != nil {
		return nil, err
	}
	return []row{limit("seconds_of_1000_objects", took.Seconds(), 10), limit("pilot_cpu_seconds", (after - cpu).Seconds(), 10)}, nil
}

// scaleFlap lets 1000 endpoints change one after the other within a second, in as many facts as the keeper would send.
func scaleFlap(b *bench) ([]row, error) {
	m, err := b.bigMesh(100)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.connect(); err != nil {
		return nil, err
	}
	before := m.received()
	cpu, err := m.pilot.cpu()
	if err != nil {
		return nil, err
	}
	const flaps, lines = 1000, 50 // the keeper gathers events for 20 ms
	begun := time.Now()
	for i := range flaps {
		m.facts.Workloads[i].Running = !m.facts.Workloads[i].Running
		if (i+1)%(flaps/lines) == 0 {
			m.tell()
			time.Sleep(time.Until(begun.Add(time.Duration(i+1) * time.Second / flaps)))
		}
	}
	if err := m.settled(); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	after, err := m.pilot.cpu()
	if err != nil {
		return nil, err
	}
	return []row{
		limit("snapshots_to_a_proxy", float64(m.received()-before)/float64(len(m.proxies)), lines),
		limit("seconds_until_settled", took.Seconds(), 2),
		limit("pilot_cpu_seconds", (after - cpu).Seconds(), 2),
	}, nil
}

// bigMesh is a mesh with what plays its keeper and proxies.
type bigMesh struct {
	ctx    context.Context //nolint:containedctx // of the case
	cancel context.CancelFunc
	dir    string
	pilot  *process
	admin  *http.Client

	facts mesh.Facts
	lines chan []byte // of facts

	proxies []*scaleProxy
	failed  chan error
	changed int // changes so far
}

func (b *bench) bigMesh(proxies int) (*bigMesh, error) {
	dir, err := os.MkdirTemp(b.dir, "scale-")
	if err != nil {
		return nil, err
	}
	m := &bigMesh{dir: dir, facts: bigFacts(), lines: make(chan []byte, 100), failed: make(chan error, proxies)}
	m.ctx, m.cancel = context.WithCancel(b.ctx)
	if err := m.keeper(); err != nil {
		m.cancel()
		return nil, err
	}
	if m.pilot, err = b.start(b.proxyCPU, m.path("admin.sock"), 0, nil, b.self, "pilot", dir); err != nil {
		m.cancel()
		return nil, err
	}
	m.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", m.path("admin.sock"))
	}}}
	for i := range proxies {
		// The first of each service, then the second: replicas are neighbours in the facts.
		w := &m.facts.Workloads[i%scaleServices*scaleReplicas+i/scaleServices]
		m.proxies = append(m.proxies, &scaleProxy{mesh: m, workload: w.Name, identity: w.Identity})
	}
	return m, nil
}

func (m *bigMesh) path(name string) string { return filepath.Join(m.dir, name) }

func (m *bigMesh) close() {
	m.cancel()
	m.admin.CloseIdleConnections()
	for _, p := range m.proxies {
		p.close()
	}
}

func bigFacts() mesh.Facts {
	f := mesh.Facts{Project: "big", Networks: []mesh.Network{{Name: "big", ID: "big", Subnets: []string{"10.0.0.0/8"}}}}
	for i := range scaleServices * scaleReplicas {
		service := fmt.Sprintf("service-%03d", i/scaleReplicas)
		version := fmt.Sprintf("v%d", i%scaleReplicas+1)
		f.Workloads = append(f.Workloads, mesh.Workload{
			Name: service + "-" + version, Namespace: scaleNamespace, ServiceAccount: service,
			Identity: "spiffe://cluster.local/ns/default/sa/" + service, Role: mesh.RoleApp, Services: []string{service},
			Labels: map[string]string{"app": service, "version": version}, Meshed: true, Running: true, Health: "healthy",
			Addresses: []mesh.Address{{Network: "big", IPv4: fmt.Sprintf("10.1.%d.%d", i/200, i%200+2)}},
			Ports:     []mesh.Port{{Number: 8080, Protocol: mesh.ProtocolHTTP}},
		})
	}
	return f
}

// keeper serves the facts.
func (m *bigMesh) keeper() error {
	m.tell()
	ln, err := (&net.ListenConfig{}).Listen(m.ctx, "unix", m.path("keeper.sock"))
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case <-r.Context().Done():
				return
			case line := <-m.lines:
				if _, err := w.Write(line); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
			}
		}
	})}
	go func() { _ = srv.Serve(ln) }() // ends with the context
	context.AfterFunc(m.ctx, func() { _ = srv.Close() })
	return nil
}

// tell makes the facts known.
func (m *bigMesh) tell() {
	m.facts.Revision++
	line, err := json.Marshal(m.facts)
	if err != nil {
		panic(err) // plain data
	}
	m.lines <- append(line, '\n')
}

// virtualService is the one of a service, with a mark to know it by.
func virtualService(i int, mark string) []byte {
	const object = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"service-%03[1]d"},"spec":{"hosts":["service-%03[1]d"],
"http":[{"match":[{"headers":{"end-user":{"exact":"jason"}}}],"route":[{"destination":{"host":"service-%03[1]d"},"headers":{"request":{"set":{"x-mark":"%[2]s"}}}}]},
{"route":[{"destination":{"host":"service-%03[1]d"}}],"timeout":"5s"}]}}`
	return fmt.Appendf(nil, object, i, mark)
}

const virtualServices = "http://pilot/apis/networking.istio.io/v1/namespaces/default/virtualservices"

func (m *bigMesh) applyAll() error {
	for i := range scaleServices {
		if err := m.call(http.MethodPost, virtualServices, virtualService(i, "first"), nil); err != nil {
			return err
		}
	}
	return nil
}

// call is one request to pilot's admin socket.
func (m *bigMesh) call(method, url string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(m.ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := m.admin.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, out.Bytes())
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(out.Bytes(), into)
}

// connect opens the streams, and waits until every proxy has what it should.
func (m *bigMesh) connect() error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	errs := make([]error, len(m.proxies))
	for i, p := range m.proxies {
		wg.Go(func() {
			slots <- struct{}{}
			errs[i] = p.connect()
			<-slots
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.settled()
}

// settled waits until all proxies have in force what they should, as pilot knows it.
func (m *bigMesh) settled() error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var r status.Report
		if err := m.call(http.MethodGet, "http://pilot/debug/proxies", nil, &r); err != nil {
			return err
		}
		synced := 0
		for _, p := range r.Proxies {
			if p.State == status.Synced {
				synced++
			}
		}
		lagging := slices.ContainsFunc(r.Resources, func(o status.Resource) bool { return o.Applied < len(m.proxies) })
		if synced == len(m.proxies) && r.FactsRevision == m.facts.Revision && !lagging {
			return nil
		}
		select {
		case err := <-m.failed:
			return err
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d proxies have the newest snapshot after two minutes", synced, len(m.proxies))
		}
	}
}

// received is how many snapshots have come to all proxies together.
func (m *bigMesh) received() (sum int) {
	for _, p := range m.proxies {
		sum += int(p.snapshots())
	}
	return sum
}

// cost is the median of what some changes cost.
type cost struct{ last, cpu, kilobytes float64 }

// changes makes n changes, one when the one before has settled. Each bears a mark that every proxy waits for.
func (m *bigMesh) changes(n int, change func(mark string) error) (cost, error) {
	var last, cpu, kilobytes []float64
	for range n {
		m.changed++
		mark := fmt.Sprintf("10.200.%d.%d", m.changed/200, m.changed%200+2)
		var seen sync.WaitGroup
		seen.Add(len(m.proxies))
		var bytesBefore int64
		for _, p := range m.proxies {
			bytesBefore += p.await(mark, &seen)
		}
		before, err := m.pilot.cpu()
		if err != nil {
			return cost{}, err
		}
		begun := time.Now()
		if err := change(mark); err != nil {
			return cost{}, err
		}
		done := make(chan struct{})
		go func() { seen.Wait(); close(done) }()
		select {
		case <-done:
		case err := <-m.failed:
			return cost{}, err
		case <-time.After(time.Minute):
			return cost{}, errors.New("it has not come to all proxies within a minute")
		}
		last = append(last, float64(time.Since(begun).Microseconds())/1000)
		if err := m.settled(); err != nil {
			return cost{}, err
		}
		after, err := m.pilot.cpu()
		if err != nil {
			return cost{}, err
		}
		cpu = append(cpu, float64((after-before).Microseconds())/1000)
		var bytesAfter int64
		for _, p := range m.proxies {
			bytesAfter += p.await("", nil)
		}
		kilobytes = append(kilobytes, float64(bytesAfter-bytesBefore)/1024/float64(len(m.proxies)))
	}
	return cost{median(last), median(cpu), median(kilobytes)}, nil
}

func (m *bigMesh) changeRoute(mark string) error {
	patch := fmt.Appendf(nil, `{"spec":{"http":[{"route":[{"destination":{"host":"service-500"},"headers":{"request":{"set":{"x-mark":%q}}}}]}]}}`, mark)
	return m.call(http.MethodPatch, virtualServices+"/service-500", patch, nil)
}

func (m *bigMesh) changeEndpoint(mark string) error {
	m.facts.Workloads[3000].Addresses[0].IPv4 = mark
	m.tell()
	return nil
}

// servePilot is this program as pilot. args is the directory for its files and sockets.
func servePilot(ctx context.Context, args []string) error {
	plane.SaveMemory()
	dir := args[0]
	self, err := scaleIdentity(dir, "pilot")
	if err != nil {
		return err
	}
	p, err := pilot.New(pilot.Config{
		TrustDomain: mesh.DefaultTrustDomain, KeeperSocket: filepath.Join(dir, "keeper.sock"), MeshSocket: filepath.Join(dir, "pilot.sock"),
		AdminSocket: filepath.Join(dir, "admin.sock"), StoreFile: filepath.Join(dir, "store.db"), Identity: self,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

func scaleIdentity(dir, plane string) (*identity.Fixed, error) {
	id, err := mesh.PlaneID(mesh.DefaultTrustDomain, mesh.Role(plane))
	if err != nil {
		return nil, err
	}
	return identity.FromLocalCA(filepath.Join(dir, "ca"), plane, id.String())
}

// scaleTLS is what a proxy of the given identity dials pilot with.
func scaleTLS(dir, id string) (*tls.Config, error) {
	own, err := identity.FromLocalCA(filepath.Join(dir, "ca"), "", id)
	if err != nil {
		return nil, err
	}
	pilotID, err := mesh.PlaneID(mesh.DefaultTrustDomain, mesh.RolePilot)
	if err != nil {
		return nil, err
	}
	return identity.ClientTLS(own, identity.AnyOf(pilotID), "http/1.1"), nil
}

// markOf reports whether line holds mark, whole or cut by the end of what came before.
func markOf(tail, line []byte, mark string) bool {
	if bytes.Contains(line, []byte(mark)) {
		return true
	}
	return strings.Contains(string(tail)+string(line[:min(len(line), len(mark))]), mark)
}
