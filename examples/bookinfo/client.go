package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// maxAnswer bounds what is read of another service's answer.
const maxAnswer = 1 << 20

// forwarded are the headers that a service copies from the request it answers to the requests that it makes for it. A
// mesh can see that two requests belong to one trace only if the application between them does this.
var forwarded = []string{
	"X-Request-Id",
	"X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags", "B3", // Zipkin
	"Traceparent", "Tracestate", "Baggage", // W3C
	"X-Ot-Span-Context",                                                        // Lightstep
	"X-Datadog-Trace-Id", "X-Datadog-Parent-Id", "X-Datadog-Sampling-Priority", // Datadog
	"X-Cloud-Trace-Context", "Grpc-Trace-Bin", // Google
	"Sw8", // SkyWalking
	"User-Agent", "Cookie", "Authorization", "Jwt",
}

// endUser names the signed-in user to the services behind the page; routes match it.
const endUser = "End-User"

// forwardHeaders are the headers of r to send on.
func forwardHeaders(r *http.Request) http.Header {
	h := http.Header{}
	for _, name := range forwarded {
		if values := r.Header.Values(name); len(values) > 0 {
			h[name] = values
		}
	}
	return h
}

// newClient keeps its connections open, and follows no environment's proxy.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second}}
}

// statusError says that a service answered, but not with 200.
type statusError struct {
	url    string
	status int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("GET %s: status %d, want 200", e.url, e.status)
}

// get fetches url. The error is a *statusError if there was an answer.
func get(ctx context.Context, c *http.Client, url string, header http.Header) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // to the end, so that the connection is used again
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{url, resp.StatusCode}
	}
	return body, nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer can't be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone: nobody to tell
}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
}

// health is the answer to GET /health of all services but productpage, whose answer is text.
type health struct {
	Status string `json:"status"`
}
