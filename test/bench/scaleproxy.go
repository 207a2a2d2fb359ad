package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// scaleProxy plays a proxy towards pilot: it holds a stream and acknowledges what comes. It does not decode it, so that
// a thousand fit beside a pilot.
type scaleProxy struct {
	mesh               *bigMesh
	workload, identity string

	stream, acks *tls.Conn
	answers      *bufio.Reader // of acks

	mu    sync.Mutex
	mark  string // what is waited for, if anything
	seen  *sync.WaitGroup
	bytes int64
	count int64 // of snapshots
}

func (p *scaleProxy) connect() error {
	conf, err := scaleTLS(p.mesh.dir, p.identity)
	if err != nil {
		return err
	}
	for _, conn := range []**tls.Conn{&p.stream, &p.acks} {
		raw, err := (&net.Dialer{}).DialContext(p.mesh.ctx, "unix", p.mesh.path("pilot.sock"))
		if err != nil {
			return err
		}
		*conn = tls.Client(raw, conf)
	}
	p.answers = bufio.NewReaderSize(p.acks, 512)
	in := bufio.NewReaderSize(p.stream, 4<<10)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := p.ask(p.stream, in, "GET /v1/snapshots?workload="+url.QueryEscape(p.workload)+"&have=", nil) //nolint:bodyclose // it is read to its end
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			go func() {
				err := p.follow(resp.Body)
				if p.mesh.ctx.Err() == nil {
					p.mesh.failed <- fmt.Errorf("proxy of %s: %w", p.workload, err)
				}
			}()
			return nil
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
			return fmt.Errorf("proxy of %s: pilot answered %s", p.workload, resp.Status)
		}
	}
}

// ask is one request on a connection. http.Client would cost more than pilot does.
func (p *scaleProxy) ask(conn *tls.Conn, in *bufio.Reader, line string, body []byte) (*http.Response, error) {
	req := fmt.Appendf(nil, "%s HTTP/1.1\r\nHost: pilot\r\nContent-Length: %d\r\n\r\n%s", line, len(body), body)
	if _, err := conn.Write(req); err != nil {
		return nil, err
	}
	return http.ReadResponse(in, nil)
}

// follow reads the stream to its end, and acknowledges each snapshot.
func (p *scaleProxy) follow(body io.Reader) error {
	lines := bufio.NewReaderSize(body, 4<<10)
	var head, tail []byte // the first bytes of the line, and the last of what has been read of it
	var length int64
	found := false
	for {
		part, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		if len(head) < 64 {
			head = append(head, part[:min(len(part), 64)]...)
		}
		length += int64(len(part))
		p.mu.Lock()
		if p.mark != "" && markOf(tail, part, p.mark) {
			found = true
		}
		p.mu.Unlock()
		tail = append(tail[:0], part[max(0, len(part)-32):]...)
		if err != nil {
			continue
		}
		if length > 1 { // else a keep-alive
			if err := p.took(head, length, found); err != nil {
				return err
			}
		}
		head, tail, length, found = head[:0], tail[:0], 0, false
	}
}

// took counts a snapshot and acknowledges it.
func (p *scaleProxy) took(head []byte, length int64, found bool) error {
	p.mu.Lock()
	p.bytes += length
	p.count++
	if found && p.seen != nil {
		p.mark = ""
		p.seen.Done()
		p.seen = nil
	}
	p.mu.Unlock()
	_, rest, ok := bytes.Cut(head, []byte(`{"version":"`))
	version, _, ended := bytes.Cut(rest, []byte(`"`))
	if !ok || !ended {
		return fmt.Errorf("a line begins with %q, want a version", head)
	}
	ack, err := json.Marshal(snapshot.Ack{Workload: p.workload, Version: string(version)})
	if err != nil {
		return err
	}
	resp, err := p.ask(p.acks, p.answers, "POST /v1/acks", ack) //nolint:bodyclose // it is empty
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("acknowledge: %s", resp.Status)
	}
	return nil
}

// await tells seen when mark comes, and returns the bytes that have come so far. Nil awaits nothing.
func (p *scaleProxy) await(mark string, seen *sync.WaitGroup) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mark, p.seen = mark, seen
	return p.bytes
}

func (p *scaleProxy) snapshots() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func (p *scaleProxy) close() {
	for _, conn := range []*tls.Conn{p.stream, p.acks} {
		if conn != nil {
			_ = conn.Close()
		}
	}
}
