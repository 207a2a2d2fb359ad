package quota

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/composure-mesh/composure/mesh/lease"
)

// countScript counts as ratelimit.Cell does, by Redis's own clock, so that mixers need not agree on theirs.
//
//go:embed count.lua
var countScript string

// redisTimeout is short: proxies that get no answer go by their onFailure.
const redisTimeout = 300 * time.Millisecond

// Redis counts in a Redis, of version 5 or later, that all mixers share. Each ask is one script, which no other can come
// between. What Redis loses when it restarts is counted anew. The script tells all mixers by a channel when a counter is
// used up, and each tells its proxies.
type Redis struct {
	client  *redis.Client
	script  *redis.Script
	channel string
	news    *redis.PubSub
}

// quiet keeps the client's own words off mixer's log: what matters comes back as an error.
var quiet = sync.OnceFunc(logging.Disable)

// NewRedis subscribes at once, and connects to count when it is first needed. The address is redis://[[user]:password@]host[:port][/db] or host:port.
func NewRedis(address string, tell Tell) (*Redis, error) {
	options := &redis.Options{Addr: address}
	var err error
	if strings.Contains(address, "://") {
		options, err = redis.ParseURL(address)
	} else if !isHostPort(address) {
		err = errors.New("want redis://host:port or host:port")
	}
	if err != nil {
		return nil, fmt.Errorf("redis %q: %w", address, err)
	}
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = redisTimeout, redisTimeout, redisTimeout
	options.MaxRetries = -1 // a script that counted, and whose answer was lost, must not count again
	options.DisableIdentity = true
	options.ContextTimeoutEnabled = true
	quiet()
	r := &Redis{
		client: redis.NewClient(options), script: redis.NewScript(countScript),
		channel: fmt.Sprintf("composure:counts/%d", options.DB), // channels are of all databases
	}
	r.news = r.client.Subscribe(context.Background(), r.channel)
	go r.hear(tell)
	return r, nil
}

// hear passes on what the mixers' scripts tell, until Close. The subscription comes back by itself; what is told while it
// is away is missed.
func (r *Redis) hear(tell Tell) {
	for m := range r.news.Channel() {
		if c, err := readCount(m.Payload); err == nil {
			tell(c) // others may write into the channel, too
		}
	}
}

// readCount reads what the script writes: three numbers, and the counter's name as JSON.
func readCount(s string) (*lease.Count, error) {
	var at, left, wait int64
	if _, err := fmt.Sscanf(s, "%d %d %d", &at, &left, &wait); err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(s, "{")
	c := new(lease.Count)
	err := json.Unmarshal([]byte("{"+name), c)
	c.At, c.Left, c.Wait = at*microsecond, left, wait
	return c, err
}

// microsecond is the script's, in the nanoseconds of a Grant.
const microsecond = int64(time.Microsecond)

func isHostPort(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// Close closes the connections.
func (r *Redis) Close() error { return errors.Join(r.news.Close(), r.client.Close()) }

// Count implements Counter.
func (r *Redis) Count(ctx context.Context, asks []Ask) ([]lease.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	answers, err := r.run(ctx, asks)
	if redis.HasErrorPrefix(err, "NOSCRIPT") { // Redis has restarted; nothing was counted
		if err = r.script.Load(ctx, r.client).Err(); err == nil {
			answers, err = r.run(ctx, asks)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	grants := make([]lease.Grant, len(asks))
	for i, answer := range answers {
		n, err := answer.Int64Slice()
		if err == nil && len(n) != 4 {
			err = errors.New("an answer of another script")
		}
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		grants[i] = lease.Grant{Tokens: n[0], At: n[1] * microsecond, Left: n[2], Wait: n[3]}
		if n[0] > 0 {
			grants[i].TTL = ttl(asks[i].Rate)
		}
	}
	return grants, nil
}

func (r *Redis) run(ctx context.Context, asks []Ask) ([]*redis.Cmd, error) {
	pipe := r.client.Pipeline()
	answers := make([]*redis.Cmd, len(asks))
	for i := range asks {
		a := &asks[i]
		name, err := json.Marshal(lease.Count{Limit: a.Limit, Key: a.Key, Override: a.Override})
		if err != nil {
			return nil, err
		}
		answers[i] = r.script.EvalSha(ctx, pipe, []string{"composure:" + a.ID},
			string(a.Rate.Algorithm), a.Rate.Limit, a.Rate.Window, a.Used, a.Want, a.Back, a.At/microsecond,
			a.Charge, name, r.channel)
	}
	_, err := pipe.Exec(ctx)
	return answers, err
}
