package control

import (
	"context"
	"net/http"
)

// pushEntries sends log entries to mixer as they come, in batches. What mixer can't be reached for waits, up to the bound
// of the queue; what it refuses is lost, and counted.
func (c *Client) pushEntries(ctx context.Context) error {
	if c.cfg.Entries == nil {
		<-ctx.Done()
		return nil
	}
	state := peerState{log: c.cfg.Log, name: "mixer, for log entries"}
	for ctx.Err() == nil {
		lines, n := c.cfg.Entries.Next(ctx)
		for failures := 0; n > 0; {
			code, err := c.sendEntries(ctx, lines)
			if err == nil {
				state.well()
				break
			}
			if code/100 == 4 && code != http.StatusTooManyRequests || ctx.Err() != nil {
				c.cfg.Entries.Lose(n)
				state.failing(err)
				break
			}
			state.failing(err)
			failures++
			sleep(ctx, backoff(failures))
		}
	}
	// What is left of a proxy that ends.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellGrace)
	defer cancel()
	if lines, n := c.cfg.Entries.Next(ctx); n > 0 {
		if _, err := c.sendEntries(last, lines); err != nil {
			c.cfg.Entries.Lose(n)
		}
	}
	return nil
}

func (c *Client) sendEntries(ctx context.Context, lines []byte) (int, error) {
	return c.send(ctx, c.mixer, "https://mixer/v1/entries", "application/x-ndjson", lines)
}
