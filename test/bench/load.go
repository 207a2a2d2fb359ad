package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// pinned runs a program of the load's CPU to its end and returns what it prints.
func (b *bench) pinned(program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(b.ctx, "taskset", append([]string{"-c", strconv.Itoa(b.loadCPU), program}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s %s", program, err, said.String(), out)
	}
	return out, nil
}

// wrk is GET in a closed loop over so many connections, at the Host that our routes know.
func (b *bench) wrk(connections int, headers ...string) load {
	return load{unit: "request", run: func(s *side, d time.Duration) (float64, sample, error) {
		args := []string{"-t1", "-c" + strconv.Itoa(connections), "--latency", "-d", wholeSeconds(d), "-H", "Host: web"}
		for _, h := range headers {
			args = append(args, "-H", h)
		}
		out, err := b.pinned("wrk", append(args, "http://"+s.addr+"/")...)
		if err != nil {
			return 0, nil, err
		}
		return parseWrk(out)
	}}
}

// wholeSeconds is a duration as wrk and h2load take it.
func wholeSeconds(d time.Duration) string {
	return strconv.Itoa(int(max(d.Round(time.Second), time.Second).Seconds()))
}

var (
	wrkCount   = regexp.MustCompile(`(\d+) requests in`)
	wrkRate    = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkLatency = regexp.MustCompile(`(?m)^\s+(50|90|99)%\s+([\d.]+)(us|ms|s)$`)
	wrkBad     = regexp.MustCompile(`(?m)^\s+(Non-2xx.*|Socket errors.*)$`)
)

func parseWrk(out []byte) (float64, sample, error) {
	if bad := wrkBad.Find(out); bad != nil {
		return 0, nil, fmt.Errorf("wrk: %s", bytes.TrimSpace(bad))
	}
	count, rate := wrkCount.FindSubmatch(out), wrkRate.FindSubmatch(out)
	if count == nil || rate == nil {
		return 0, nil, fmt.Errorf("wrk: can't read %q", out)
	}
	m := sample{"requests_per_second": parse(rate[1])}
	unit := map[string]float64{"us": 1e-3, "ms": 1, "s": 1e3}
	for _, l := range wrkLatency.FindAllSubmatch(out, -1) {
		m["p"+string(l[1])+"_ms"] = parse(l[2]) * unit[string(l[3])]
	}
	delete(m, "p90_ms")
	return parse(count[1]), m, nil
}

func parse(b []byte) float64 {
	v, _ := strconv.ParseFloat(string(b), 64) // matched as a number
	return v
}

// h2load is HTTP/2 by prior knowledge, 16 streams at a time on each of 8 connections.
func (b *bench) h2load(args ...string) load {
	return load{unit: "request", run: func(s *side, d time.Duration) (float64, sample, error) {
		all := append([]string{"-t1", "-c8", "-m16", "-D", wholeSeconds(d), "-H", ":authority: web"}, args...)
		out, err := b.pinned("h2load", append(all, "http://"+s.addr+"/")...)
		if err != nil {
			return 0, nil, err
		}
		return parseH2load(out)
	}}
}

var (
	h2Rate  = regexp.MustCompile(`finished in [\d.]+m?s, ([\d.]+) req/s`)
	h2Count = regexp.MustCompile(`(\d+) done, (\d+) succeeded, (\d+) failed`)
	h2Bad   = regexp.MustCompile(`status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx`)
)

func parseH2load(out []byte) (float64, sample, error) {
	rate, count, status := h2Rate.FindSubmatch(out), h2Count.FindSubmatch(out), h2Bad.FindSubmatch(out)
	if rate == nil || count == nil || status == nil {
		return 0, nil, fmt.Errorf("h2load: can't read %q", out)
	}
	if parse(count[3]) > 0 || parse(status[4]) > 0 || parse(status[3]) > 0 {
		return 0, nil, fmt.Errorf("h2load: %s; %s", count[0], status[0])
	}
	return parse(count[1]), sample{"requests_per_second": parse(rate[1])}, nil
}

// generated is a load of this program itself: what it is, and its parameters.
func (b *bench) generated(unit string, p loadParams) load {
	return load{unit: unit, run: func(s *side, d time.Duration) (float64, sample, error) {
		p := p
		p.Addr, p.Seconds = s.addr, d.Seconds()
		args, err := json.Marshal(p)
		if err != nil {
			return 0, nil, err
		}
		out, err := b.pinned(b.self, "load", string(args))
		if err != nil {
			return 0, nil, err
		}
		var r loadResult
		if err := json.Unmarshal(out, &r); err != nil {
			return 0, nil, fmt.Errorf("load %s: %w", p.Kind, err)
		}
		if r.Error != "" {
			return 0, nil, errors.New("load " + p.Kind + ": " + r.Error)
		}
		return r.Count, r.Metrics, nil
	}}
}
