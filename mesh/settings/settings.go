// Package settings are what a user may set of one proxy, with their defaults: labels of a compose service
// (composure.proxy.<name>), which inject checks, environment of the proxy's container, flags of a proxy that stands alone.
package settings

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Proxy are the settings of a proxy. Where a destination rule says something of its own, that wins.
type Proxy struct {
	HeaderSize, HeaderCount, TargetSize               int
	HandshakeTimeout, FirstByteTimeout, HeaderTimeout time.Duration
	IdleTimeout, StreamIdleTimeout, TCPIdleTimeout    time.Duration
	ConnectTimeout, UpstreamIdleTimeout, Drain        time.Duration
	MaxStreams                                        uint32
	// MaxConnections 0 is half of the descriptors that the process may have.
	MaxConnections int
	// ProxyProtocol are the ports at which connections begin with a PROXY header.
	ProxyProtocol []uint16
}

// Setting is one of them.
type Setting struct {
	Name string
	// Default is written as a user would write it; empty where Text tells it.
	Default string
	Text    string
	// Source says where the default is from.
	Source string

	set func(p *Proxy, v string) error
}

// All are the settings, in the order of the documentation.
var All = []Setting{
	{"header-size", "60k", "size of a message's head, with its trailers; more is 431 for a request, 502 for a response", "Envoy `max_request_headers_kb`",
		size(func(p *Proxy) *int { return &p.HeaderSize }, 1<<10, 8<<20)},
	{"header-count", "100", "header fields of a message, with its trailers; more is 431 or 502", "Envoy `max_headers_count`",
		number(func(p *Proxy) *int { return &p.HeaderCount }, 1, 10000)},
	{"target-size", "8k", "size of a request's target, which is path and query; more is 414", "nginx `large_client_header_buffers`",
		size(func(p *Proxy) *int { return &p.TargetSize }, 64, 1<<20)},
	{"handshake-timeout", "5s", "a client's TLS ClientHello from its first byte on, and the handshake after it", "less than the 15 s of Istio's gateways",
		duration(func(p *Proxy) *time.Duration { return &p.HandshakeTimeout })},
	{"first-byte-timeout", "1m", "how long a client of a port declared HTTP, or of a gateway, may send nothing, after a TLS handshake once more", "nginx `client_header_timeout`",
		duration(func(p *Proxy) *time.Duration { return &p.FirstByteTimeout })},
	{"header-timeout", "10s", "a request's head from its first byte to its last; then it is 408", "Envoy has none by default; its guide for the edge asks for one",
		duration(func(p *Proxy) *time.Duration { return &p.HeaderTimeout })},
	{"idle-timeout", "1h", "how long a client's connection may wait for its next request", "Envoy `idle_timeout`",
		duration(func(p *Proxy) *time.Duration { return &p.IdleTimeout })},
	{"stream-idle-timeout", "5m", "how long nothing may move in a request that is under way, in either direction", "Envoy `stream_idle_timeout`",
		duration(func(p *Proxy) *time.Duration { return &p.StreamIdleTimeout })},
	{"tcp-idle-timeout", "1h", "how long a connection that is no HTTP may be silent on both sides", "Envoy TCP proxy `idle_timeout`",
		duration(func(p *Proxy) *time.Duration { return &p.TCPIdleTimeout })},
	{"connect-timeout", "5s", "connecting to an upstream, its TLS handshake included; a DestinationRule's `connectTimeout` wins", "Envoy `connect_timeout`",
		duration(func(p *Proxy) *time.Duration { return &p.ConnectTimeout })},
	{"upstream-idle-timeout", "30s", "how long an idle connection to an upstream is kept, of at most 1024 for an endpoint's port, unless its `Keep-Alive` names less; a DestinationRule's `idleTimeout` wins",
		"less than the keep-alive of most servers, so that they don't close just as a request is sent",
		duration(func(p *Proxy) *time.Duration { return &p.UpstreamIdleTimeout })},
	{"drain", "25s", "how long connections may go on after the proxy was told to stop", "less than inject's `stop_grace_period`, which is 10 s longer",
		duration(func(p *Proxy) *time.Duration { return &p.Drain })},
	{"max-streams", "100", "requests that a client may have under way on one HTTP/2 connection", "Envoy's guide for the edge",
		number(func(p *Proxy) *uint32 { return &p.MaxStreams }, 1, 100000)},
	{"max-connections", "", "clients' connections at once, beyond which new ones are reset; half of the file descriptors by default", "each needs a second one for its upstream",
		number(func(p *Proxy) *int { return &p.MaxConnections }, 1, math.MaxInt32)},
	{"proxy-protocol", "", "ports, comma-separated, at which a connection from outside the mesh begins with a PROXY header, version 1 or 2; none by default", "its word is believed",
		ports(func(p *Proxy) *[]uint16 { return &p.ProxyProtocol })},
}

// Find is the setting of a name, or nil.
func Find(name string) *Setting {
	for i := range All {
		if All[i].Name == name {
			return &All[i]
		}
	}
	return nil
}

// Env is the variable in a proxy's environment that holds the setting.
func (s *Setting) Env() string {
	return "COMPOSURE_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// Check says what is wrong with a value, as "want …".
func (s *Setting) Check(v string) error { return s.set(&Proxy{}, v) }

// Set takes a value over into p. The error is Check's.
func (s *Setting) Set(p *Proxy, v string) error { return s.set(p, v) }

// Default are the settings of a proxy of which nothing was set.
func Default() *Proxy {
	p := &Proxy{}
	for i := range All {
		if s := &All[i]; s.Default != "" {
			if err := s.set(p, s.Default); err != nil {
				panic("settings: default of " + s.Name + ": " + err.Error()) // a constant of this file
			}
		}
	}
	return p
}

// Drain is how long a proxy with the given value, or the default where it is empty, may take to stop.
func Drain(v string) time.Duration {
	p := Default()
	if v != "" {
		_ = Find("drain").Set(p, v) // whoever cares has checked it
	}
	return p.Drain
}

const maxDuration = 365 * 24 * time.Hour

func duration(field func(*Proxy) *time.Duration) func(*Proxy, string) error {
	return func(p *Proxy, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < time.Millisecond || d > maxDuration {
			return errors.New("want a duration from 1ms to 8760h, such as 30s")
		}
		*field(p) = d
		return nil
	}
}

func number[T int | uint32](field func(*Proxy) *T, least, most T) func(*Proxy, string) error {
	return func(p *Proxy, v string) error {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil || T(n) < least || T(n) > most {
			return fmt.Errorf("want a number from %d to %d", least, most)
		}
		*field(p) = T(n)
		return nil
	}
}

func ports(field func(*Proxy) *[]uint16) func(*Proxy, string) error {
	return func(p *Proxy, v string) error {
		var list []uint16
		for text := range strings.SplitSeq(v, ",") {
			port, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
			if err != nil || port == 0 {
				return errors.New("want ports from 1 to 65535, separated by commas")
			}
			list = append(list, uint16(port))
		}
		*field(p) = list
		return nil
	}
}

// size reads bytes, or units of 1024 with k, of 1024² with m.
func size(field func(*Proxy) *int, least, most int) func(*Proxy, string) error {
	return func(p *Proxy, v string) error {
		digits, unit := v, 1
		switch {
		case strings.HasSuffix(v, "k"):
			digits, unit = v[:len(v)-1], 1<<10
		case strings.HasSuffix(v, "m"):
			digits, unit = v[:len(v)-1], 1<<20
		}
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil || n > uint64(most/unit) || int(n)*unit < least { //nolint:gosec // bounded just before
			return fmt.Errorf("want a size from %s to %s, in bytes or with k or m", bytes(least), bytes(most))
		}
		*field(p) = int(n) * unit //nolint:gosec // bounded above
		return nil
	}
}

func bytes(n int) string {
	switch {
	case n%(1<<20) == 0:
		return strconv.Itoa(n>>20) + "m"
	case n%(1<<10) == 0:
		return strconv.Itoa(n>>10) + "k"
	}
	return strconv.Itoa(n)
}
