package proxytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Block is a header block of names and values in turn.
func Block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // into memory
	}
	return b.Bytes()
}

// Floods are ways to make an HTTP/2 server work for nothing. Each sends the frames of its round n, counted from 0; errors
// of writing mean that the server has had enough.
func Floods() map[string]func(f *http2.Framer, n uint32) {
	get := Block(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
	open := func(f *http2.Framer, id uint32, end bool) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: get, EndHeaders: true, EndStream: end})
	}
	return map[string]func(f *http2.Framer, n uint32){
		"PING":     func(f *http2.Framer, _ uint32) { _ = f.WritePing(false, [8]byte{}) },
		"SETTINGS": func(f *http2.Framer, _ uint32) { _ = f.WriteSettings() },
		"SETTINGS window toggle": func(f *http2.Framer, n uint32) {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n % 2 * 1000})
		},
		"PRIORITY":      func(f *http2.Framer, n uint32) { _ = f.WritePriority(2*n+1, http2.PriorityParam{}) },
		"unknown type":  func(f *http2.Framer, _ uint32) { _ = f.WriteRawFrame(0x0b, 0, 0, nil) },
		"WINDOW_UPDATE": func(f *http2.Framer, _ uint32) { _ = f.WriteWindowUpdate(0, 1) },
		"empty DATA": func(f *http2.Framer, n uint32) {
			if n == 0 {
				open(f, 1, false)
			}
			_ = f.WriteData(1, false, nil)
		},
		"padding only": func(f *http2.Framer, n uint32) {
			if n == 0 {
				open(f, 1, false)
			}
			_ = f.WriteDataPadded(1, false, nil, make([]byte, 10))
		},
		"rapid reset": func(f *http2.Framer, n uint32) {
			open(f, 2*n+1, true)
			_ = f.WriteRSTStream(2*n+1, http2.ErrCodeCancel)
		},
		"MadeYouReset": func(f *http2.Framer, n uint32) {
			open(f, 2*n+1, true)
			_ = f.WriteRawFrame(http2.FrameWindowUpdate, 0, 2*n+1, make([]byte, 4))
		},
		"too many streams": func(f *http2.Framer, n uint32) { open(f, 2*n+1, false) },
		"CONTINUATION": func(f *http2.Framer, n uint32) {
			if n == 0 {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
			}
			_ = f.WriteContinuation(1, false, nil)
		},
		"CONTINUATION bytes": func(f *http2.Framer, n uint32) {
			if n == 0 {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
			}
			_ = f.WriteContinuation(1, false, Block("x", strings.Repeat("~", 1<<10)))
		},
	}
}

// ErrNotCutOff is a flood that has gone on to its end.
var ErrNotCutOff = errors.New("the flood was not cut off")

// Flood sends a flood over nc, until the server ends the connection; the error is how: an http2.ConnectionError with the
// code of its GOAWAY, or that of reading where there was none.
func Flood(ctx context.Context, nc net.Conn, flood func(f *http2.Framer, n uint32)) error {
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		return err
	}
	ended := make(chan error, 1)
	w := http2.NewFramer(nc, nil)
	w.AllowIllegalWrites = true
	_ = w.WriteSettings()
	go func() {
		r := http2.NewFramer(nil, nc)
		for {
			f, err := r.ReadFrame()
			if g, ok := f.(*http2.GoAwayFrame); ok {
				err = http2.ConnectionError(g.ErrCode)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	for n := range uint32(1_000_000) {
		flood(w, n)
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ErrNotCutOff
		default:
		}
	}
	return ErrNotCutOff
}
