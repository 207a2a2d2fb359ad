package control

import (
	"context"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// missedEvery is how often citadel is told of keys that are missed, where any are.
const missedEvery = time.Second

// tellMissedKeys tells citadel which keys are missed. One that can't be told is missed again by the next token.
func (c *Client) tellMissedKeys(ctx context.Context) error {
	if c.cfg.MissedKeys == nil {
		return nil
	}
	ticker := time.NewTicker(missedEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		uris := c.cfg.MissedKeys()
		if len(uris) == 0 {
			continue
		}
		if err := c.post(ctx, c.citadel, "https://citadel/v1/missed-keys", snapshot.MissedKeys{URIs: uris}); err != nil {
			c.cfg.Log.Debug("citadel could not be told of missed keys", "uris", uris, "error", err)
		}
	}
}
