package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// serveBackend is this program as the application: "http" has bodies of any size, "grpc" echoes messages over HTTP/2 in
// plain text, "echo" bytes, "source" sends bytes without end.
func serveBackend(ctx context.Context, args []string) error {
	if _, err := raiseFileLimit(); err != nil {
		return err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", args[1])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = ln.Close() }) // ends the program
	server := &http.Server{ReadHeaderTimeout: time.Minute}
	switch args[0] {
	case "http":
		server.Handler = http.HandlerFunc(body)
		err = server.Serve(ln)
	case "grpc":
		server.Handler = http.HandlerFunc(grpcEcho)
		server.Protocols = new(http.Protocols)
		server.Protocols.SetUnencryptedHTTP2(true)
		err = server.Serve(ln)
	case "echo":
		err = each(ln, func(c net.Conn) { _, _ = io.Copy(onlyWriter{c}, c) }) // until the client is done
	case "source":
		err = each(ln, func(c net.Conn) {
			piece := make([]byte, 256<<10)
			for err := error(nil); err == nil; { // until the client is gone
				_, err = c.Write(piece)
			}
		})
	default:
		return fmt.Errorf("backend %q", args[0])
	}
	if errors.Is(err, net.ErrClosed) {
		err = nil // it was told to end
	}
	return err
}

// onlyWriter keeps io.Copy from splice, which a message of 64 bytes does not pay for.
type onlyWriter struct{ io.Writer }

func each(ln net.Listener, serve func(net.Conn)) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

var zeros [256 << 10]byte

// body answers GET /N with N bytes, and takes what is posted.
func body(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		_, _ = io.Copy(io.Discard, r.Body) // the client sees a short answer
		w.Header().Set("Content-Length", "0")
		return
	}
	n, err := strconv.Atoi(r.URL.Path[1:])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(n))
	for n > 0 && err == nil {
		var m int
		m, err = w.Write(zeros[:min(n, len(zeros))])
		n -= m
	}
}

// grpcEcho sends back what comes, as it comes, and says OK in the trailers.
func grpcEcho(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	buf := make([]byte, 16<<10)
	for err := flush(); err == nil; {
		var n int
		n, err = r.Body.Read(buf)
		if n > 0 {
			if _, e := w.Write(buf[:n]); e != nil {
				return
			}
			if err == nil {
				err = flush()
			}
		}
	}
	w.Header().Set("Grpc-Status", "0")
}
