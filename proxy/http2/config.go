package http2

import (
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
)

// Config is for either side of a connection. The zero value means the defaults, which are those of Envoy's guide for a
// proxy at the edge (https://www.envoyproxy.io/docs/envoy/latest/configuration/best_practices/edge).
type Config struct {
	// Limits bound a header block after decompression: HeadBytes, default 60 KiB, counted as RFC 9113 section 6.5.2
	// counts (32 bytes a field on top), and Fields, default 100; the same once more for trailers.
	Limits http1.Limits
	// Streams is how many the peer may have open at once; default 100. A stream counts until its handler has returned,
	// so resetting streams makes no room for more work.
	Streams uint32
	// StreamWindow is how many bytes of a body are buffered for a reader that is slow; default 64 KiB. A connection
	// holds Streams times as much at the very most.
	StreamWindow int32
	// ConnWindow is how many bytes may be in flight on a connection; default 1 MiB. What has arrived is given back
	// at once: each stream's own window bounds what is buffered, and a slow one costs its neighbours nothing.
	ConnWindow int32
	Timeouts   Timeouts
}

// Timeouts of a connection. Zero means the default.
type Timeouts struct {
	Header     time.Duration // from a header block's first frame to its last, and for the peer's first SETTINGS; default 10 s
	Idle       time.Duration // how long a connection without streams is kept; default 60 s
	StreamIdle time.Duration // how long a stream on which nothing moves is kept, unless it is a tunnel; default 5 min
	// Ping is after what silence the peer is asked whether it is still there, and how long it may take to answer; the
	// default 0 asks never.
	Ping time.Duration
}

func (c Config) withDefaults() Config {
	orInt := func(v *int32, d int32) {
		if *v == 0 {
			*v = d
		}
	}
	orTime := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	if c.Limits.HeadBytes == 0 {
		c.Limits.HeadBytes = 60 << 10
	}
	if c.Limits.Fields == 0 {
		c.Limits.Fields = 100
	}
	if c.Limits.TargetBytes == 0 {
		c.Limits.TargetBytes = 8 << 10
	}
	if c.Streams == 0 {
		c.Streams = 100
	}
	orInt(&c.StreamWindow, 64<<10)
	orInt(&c.ConnWindow, 1<<20)
	orTime(&c.Timeouts.Header, 10*time.Second)
	orTime(&c.Timeouts.Idle, time.Minute)
	orTime(&c.Timeouts.StreamIdle, 5*time.Minute)
	return c
}
