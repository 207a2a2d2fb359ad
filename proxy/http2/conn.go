package http2

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// specWindow is every window before SETTINGS say otherwise (RFC 9113 section 6.9.2).
const specWindow = 65535

const maxWindow = 1<<31 - 1

// conn is what both sides of a connection have alike. One goroutine reads (run), one writes (writeLoop).
type conn struct {
	cfg    Config
	nc     net.Conn
	server bool
	start  time.Time
	accept func(*stream) // server: starts the handler of a new stream

	// Of the reader alone.
	br         *bufio.Reader
	fr         *http2.Framer
	dec        *hpack.Decoder
	head       *head // the block that is being read
	headStream uint32
	headEnd    bool
	headBytes  int
	settings   bool // the peer's first SETTINGS have come

	writeUntil time.Time // of the writer alone

	mu         sync.Mutex
	err        error // set once: the connection is over
	streams    map[uint32]*stream
	active     int // server: handlers that run; client: streams that are open
	lastID     uint32
	lastReset  [recent]uint32 // streams that we have reset: what still comes for them is ignored
	resets     int
	closed     [recent]uint32 // streams that ended, in whatever way, the latest ones
	closes     int
	glitches   budget
	recvWindow int32
	unacked    int32

	enc           *encoder
	out           []byte
	ready         []*stream // streams with something to send, in turn
	sendWindow    int64
	initialWindow int64 // of the peer, for each stream
	maxStreams    uint32
	draining      bool // no further stream is begun or taken
	wake          chan struct{}
	writerIdle    bool
	room          sync.Cond
	waiting       int
	lastRead      time.Duration
	pinged        bool
	timer         *time.Timer
	work          sync.WaitGroup
}

func newConn(nc net.Conn, cfg Config, server bool) *conn {
	c := &conn{
		cfg: cfg.withDefaults(), nc: nc, server: server, start: time.Now(), streams: make(map[uint32]*stream),
		br: bufio.NewReaderSize(nc, 4<<10), enc: newEncoder(), sendWindow: specWindow, initialWindow: specWindow,
		maxStreams: 100, wake: make(chan struct{}, 1), glitches: budget{left: glitchBudget},
	}
	c.recvWindow = max(c.cfg.ConnWindow, specWindow)
	c.room.L = &c.mu
	c.fr = http2.NewFramer(nil, c.br)
	c.fr.SetMaxReadFrameSize(maxFrame)
	c.fr.SetReuseFrames()
	c.dec = hpack.NewDecoder(4<<10, func(f hpack.HeaderField) { c.head.add(f) })
	c.dec.SetMaxStringLength(c.cfg.Limits.HeadBytes)
	return c
}

// run serves the connection to its end.
func (c *conn) run() error {
	written := make(chan struct{})
	go func() { c.writeLoop(); close(written) }()
	c.mu.Lock()
	if c.err == nil {
		c.timer = time.AfterFunc(c.interval(), c.tick)
	}
	c.mu.Unlock()
	c.fail(c.readLoop())
	<-written
	c.linger()
	_ = c.nc.Close()
	c.work.Wait()
	var broken *ConnError
	if errors.As(c.err, &broken) {
		return c.err
	}
	return nil
}

// linger lets the peer read the GOAWAY: closing at once could make the kernel reset the connection before.
func (c *conn) linger() {
	if h, ok := c.nc.(interface{ CloseWrite() error }); !ok || h.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
	_, _ = io.CopyN(io.Discard, c.nc, 256<<10) // its end and its error are alike
}

// fail ends the connection: what is in out is still sent, all streams end with err.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	code := NoError
	var broken *ConnError
	if errors.As(err, &broken) {
		code = broken.Code
	}
	last := c.lastID
	if !c.server {
		last = 0
	}
	c.writeGoAway(last, code)
	c.err = err
	c.draining = true
	for _, s := range c.streams {
		s.end(&StreamError{Code: Cancel, Reason: "the connection ended: " + err.Error(), Remote: true, Lost: true})
	}
	clear(c.streams)
	c.room.Broadcast()
	if c.timer != nil {
		c.timer.Stop()
	}
	now := time.Now()
	_ = c.nc.SetWriteDeadline(now.Add(250 * time.Millisecond))
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

func (c *conn) interval() time.Duration {
	t := c.cfg.Timeouts
	d := min(t.Idle, t.StreamIdle, t.Header)
	if t.Ping > 0 {
		d = min(d, t.Ping)
	}
	return d / 4
}

var errIdle = errors.New("http2: the connection was idle")

// tick looks for what has been still for too long.
func (c *conn) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now, t := time.Since(c.start), c.cfg.Timeouts
	for _, s := range c.streams {
		if !s.tunnel && now-s.moved >= t.StreamIdle {
			s.reset(ErrStreamIdle)
		}
	}
	switch silence := now - c.lastRead; {
	case c.active == 0 && silence >= t.Idle:
		c.failLocked(errIdle)
		return
	case t.Ping > 0 && silence >= 2*t.Ping:
		c.failLocked(errors.New("http2: the peer does not answer a PING"))
		return
	case t.Ping > 0 && silence >= t.Ping && !c.pinged:
		c.pinged = true
		c.writePing(0, [8]byte{1})
	}
	c.timer.Reset(c.interval())
}

// charge takes from the budget; the caller holds mu.
func (c *conn) charge(n int) error {
	if !c.glitches.spend(n, time.Since(c.start)) || len(c.out) > hardOut {
		return &ConnError{EnhanceCalm, "the peer makes work without moving messages"}
	}
	return nil
}

// drop forgets a stream that has ended in both directions.
func (c *conn) drop(s *stream) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	c.closed[c.closes%len(c.closed)] = s.id
	c.closes++
	if !c.server {
		c.active--
	}
	if c.active == 0 && c.draining {
		c.failLocked(errDrained)
	}
}

var errDrained = errors.New("http2: the connection is drained")

// recent is how many streams are remembered that have ended: more than are open at once by default.
const recent = 128

func contains(ids *[recent]uint32, id uint32) bool {
	for _, v := range ids {
		if v == id {
			return true
		}
	}
	return false
}

// drain ends the connection after the streams that are open.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return
	}
	if c.server {
		// What the client has sent before it reads this is still taken (RFC 9113 section 6.8).
		c.writeGoAway(maxWindow, NoError)
		c.writePing(0, drainPing)
		return
	}
	c.drained()
}

var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}

func (c *conn) drained() {
	c.draining = true
	if c.server {
		c.writeGoAway(c.lastID, NoError)
	}
	if c.active == 0 {
		c.failLocked(errDrained)
	}
}
