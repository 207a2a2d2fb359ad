package mixer

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mixer/compile"
	"github.com/composure-mesh/composure/mixer/quota"
)

// maxLeaseBytes bounds one request: keys are made of requests' heads.
const maxLeaseBytes = 32 << 20

// limitCounters are where limits are counted, by their addresses: a Redis, or "" for mixer's own counter.
type limitCounters struct {
	mu  sync.Mutex
	all map[string]quota.Counter
	// tell is told of the counters at an address.
	tell func(address string, c *lease.Count)
}

func newLimitCounters(tell func(address string, c *lease.Count)) limitCounters {
	memory := quota.NewMemory(func(c *lease.Count) { tell("", c) })
	return limitCounters{all: map[string]quota.Counter{"": memory}, tell: tell}
}

// at is the counter at an address; it connects when it is used.
func (c *limitCounters) at(address string) (quota.Counter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	counter := c.all[address]
	if counter == nil {
		var err error
		if counter, err = quota.NewRedis(address, func(n *lease.Count) { c.tell(address, n) }); err != nil {
			return nil, err
		}
		c.all[address] = counter
	}
	return counter, nil
}

// serveLeases counts what a proxy tells, and grants what it asks for. 503: a counter does not answer, and nothing is known.
func (s *Server) serveLeases(w http.ResponseWriter, r *http.Request) {
	var req lease.Request
	if err := json.NewDecoder(httpx.Body(w, r, maxLeaseBytes)).Decode(&req); err != nil {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("decode the request: %w", err))
		return
	}
	if len(req.Asks) > lease.MaxAsks {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("%d asks, want at most %d", len(req.Asks), lease.MaxAsks))
		return
	}
	if err := s.Authorize(r, req.Workload); err != nil {
		plane.Fail(w, err)
		return
	}
	index, _ := s.InForce().(*compile.Index)
	answer := lease.Answer{Grants: make([]lease.Grant, len(req.Asks))}
	type batch struct {
		asks   []quota.Ask
		places []int
	}
	limits := map[string]*compile.Limit{}
	batches := map[string]*batch{}
	for i := range req.Asks {
		a := &req.Asks[i]
		limit, known := limits[a.Limit]
		if !known {
			limit = index.RateLimit(req.Workload, a.Limit)
			limits[a.Limit] = limit
		}
		if limit == nil || !limit.Global || a.Override < 0 || a.Override > len(limit.Overrides) || a.Used < 0 || a.Want < 0 || a.Back < 0 {
			answer.Grants[i].Unknown = true
			continue
		}
		rate := &limit.Rate
		if a.Override > 0 {
			rate = &limit.Overrides[a.Override-1].Rate
		}
		b := batches[limit.Redis]
		if b == nil {
			b = &batch{}
			batches[limit.Redis] = b
		}
		// A limit that is given another window begins anew; with another amount it goes on.
		id := fmt.Sprintf("%s/%s/%d/%s", limit.Name, rate.Algorithm, rate.Window, base64.RawURLEncoding.EncodeToString(a.Key))
		b.asks, b.places = append(b.asks, quota.Ask{ID: id, Rate: rate, Charge: limit.Charge, Ask: a}), append(b.places, i)
	}
	for address, b := range batches {
		counter, err := s.counters.at(address)
		if err != nil {
			httpx.Error(w, http.StatusServiceUnavailable, err)
			return
		}
		grants, err := counter.Count(r.Context(), b.asks)
		if err != nil {
			s.cfg.Log.Warn("rate limits are not counted", "workload", req.Workload, "error", err)
			httpx.Error(w, http.StatusServiceUnavailable, err)
			return
		}
		for i, place := range b.places {
			answer.Grants[place] = grants[i]
		}
	}
	httpx.JSON(w, answer)
}

// follower is a proxy that hears of counters.
type follower struct {
	workload string
	wake     chan struct{}
	mu       sync.Mutex
	news     []lease.Count
}

// maxNews is how much waits for a proxy that is slow to take it. It hears of no more until it has.
const maxNews = 1024

func (f *follower) tell(c *lease.Count) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.news) < maxNews {
		f.news = append(f.news, *c)
	}
	select {
	case f.wake <- struct{}{}:
	default: // it is awake
	}
}

// next are the lines that wait.
func (f *follower) next() ([][]byte, error) {
	f.mu.Lock()
	news := f.news
	f.news = nil
	f.mu.Unlock()
	lines := make([][]byte, 0, 2*len(news))
	for i := range news {
		line, err := json.Marshal(&news[i])
		if err != nil {
			return nil, err
		}
		lines = append(lines, line, []byte{'\n'})
	}
	return lines, nil
}

// followers are the proxies that hear of counters.
type followers struct {
	mu  sync.Mutex
	all map[*follower]struct{}
}

// tellFollowers tells of a counter at an address those proxies that have the limit.
func (s *Server) tellFollowers(address string, c *lease.Count) {
	index, ok := s.InForce().(*compile.Index)
	if !ok {
		return
	}
	s.followers.mu.Lock()
	defer s.followers.mu.Unlock()
	for f := range s.followers.all {
		if limit := index.RateLimit(f.workload, c.Limit); limit != nil && limit.Global && limit.Redis == address {
			f.tell(c)
		}
	}
}

// serveCounts tells a proxy, for as long as it stays, of the counters of its limits: ?workload=NAME.
func (s *Server) serveCounts(w http.ResponseWriter, r *http.Request) {
	f := &follower{workload: r.URL.Query().Get("workload"), wake: make(chan struct{}, 1)}
	if err := s.Authorize(r, f.workload); err != nil {
		plane.Fail(w, err)
		return
	}
	s.followers.mu.Lock()
	s.followers.all[f] = struct{}{}
	s.followers.mu.Unlock()
	defer func() {
		s.followers.mu.Lock()
		defer s.followers.mu.Unlock()
		delete(s.followers.all, f)
	}()
	plane.Stream(w, r, f.wake, f.next)
}
