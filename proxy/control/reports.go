package control

import (
	"context"
)

// pushReports sends everything counted to mixer whenever it has changed, once a second at most. Reports are
// cumulative, so a lost one costs nothing and none is queued.
func (c *Client) pushReports(ctx context.Context) error {
	state := peerState{log: c.cfg.Log, name: "mixer"}
	var sent uint64
	failures := 0
	push := func(ctx context.Context) error {
		r, events := c.cfg.Report()
		if events == sent || r.Workload == "" {
			return nil
		}
		if err := c.post(ctx, c.mixer, "https://mixer/v1/reports", r); err != nil {
			c.failedReports.Add(1)
			return err
		}
		c.reports.Add(1)
		sent = events
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
