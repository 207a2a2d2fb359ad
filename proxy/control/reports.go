package control

import (
	"context"
	"time"
)

// heartbeat is how often a report is sent though nothing has changed: a mixer that has restarted learns an idle
// proxy's series anew, and one that has not does not take the proxy for gone.
const heartbeat = 30 * time.Second

// pushReports sends everything counted to mixer whenever it has changed, once a second at most, and every heartbeat.
// Reports are cumulative, so a lost one costs nothing and none is queued.
func (c *Client) pushReports(ctx context.Context) error {
	state := peerState{log: c.cfg.Log, name: "mixer"}
	var (
		sent uint64
		at   time.Time
	)
	failures := 0
	push := func(ctx context.Context) error {
		r, events := c.cfg.Report()
		if events == sent && time.Since(at) < heartbeat || r.Workload == "" {
			return nil
		}
		if err := c.post(ctx, c.mixer, "https://mixer/v1/reports", r); err != nil {
			c.failedReports.Add(1)
			return err
		}
		c.reports.Add(1)
		sent, at = events, time.Now()
		state.well()
		return nil
	}
	for ctx.Err() == nil {
		wait := reportEvery
		switch err := push(ctx); {
		case err == nil:
			failures = 0
		case ctx.Err() == nil:
			state.failing(err)
			failures++
			wait = max(wait, backoff(failures))
		}
		sleep(ctx, wait)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellGrace)
	defer cancel()
	if err := push(last); err != nil && !state.failed {
		c.cfg.Log.Warn("the last report did not reach mixer", "error", err)
	}
	return nil
}
