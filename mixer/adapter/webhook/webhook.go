// Package webhook gives entries to an adapter outside of mixer, which a handler names by its connection: one POST of JSON
// a batch.
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Adapter is one handler.
type Adapter struct {
	address string
	client  *http.Client
}

// timeout is how long the other side may take to answer.
const timeout = 5 * time.Second

// New makes a handler that posts to address.
func New(address string) *Adapter {
	return &Adapter{address: address, client: &http.Client{
		Timeout: timeout,
		// What the configuration says is where it goes.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{MaxIdleConns: 1, IdleConnTimeout: time.Minute},
	}}
}

// Body is what is posted.
type Body struct {
	Handler string  `json:"handler"`
	Entries []Entry `json:"entries"`
}

// Entry is one log entry, or one observation of a metric, whose variables are its dimensions and its value.
type Entry struct {
	Instance  string         `json:"instance"`
	Time      time.Time      `json:"time"`
	Severity  string         `json:"severity,omitempty"`
	Variables map[string]any `json:"variables"`
}

// Write posts the batch. Any answer of 2xx is a yes.
func (a *Adapter) Write(ctx context.Context, batch []report.Entry) error {
	if len(batch) == 0 {
		return nil
	}
	body := Body{Handler: batch[0].Handler}
	for i := range batch {
		e := Entry{Instance: batch[i].Instance, Time: batch[i].Time, Severity: batch[i].Severity, Variables: map[string]any{}}
		for j := range batch[i].Variables {
			v := &batch[i].Variables[j]
			e.Variables[v.Name] = value(v)
		}
		body.Entries = append(body.Entries, e)
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.address, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return errors.New(a.address + ": " + resp.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return err
}

// value is what JSON has for a type: numbers, truth values, else text.
func value(v *report.Variable) any {
	switch v.Type {
	case snapshot.Int64:
		if n, err := strconv.ParseInt(v.Value, 10, 64); err == nil {
			return n
		}
	case snapshot.Double:
		if f, err := strconv.ParseFloat(v.Value, 64); err == nil {
			return f
		}
	case snapshot.Bool:
		return v.Value == "true"
	}
	return v.Value
}

// Close lets go of the connection.
func (a *Adapter) Close() error {
	a.client.CloseIdleConnections()
	return nil
}
