package api

import (
	"fmt"
	"net/url"
	"time"
)

// Quota is an instance that is counted, in a counter for each combination of its dimensions
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/templates/quota/).
type Quota struct {
	Dimensions map[string]string `json:"dimensions"`
}

func quota() Template {
	return Template{Name: "quota", Check: true, newParams: func() any { return &Quota{} }}
}

// QuotaLimit is how much of a quota passes: what memquota and redisquota share.
type QuotaLimit struct {
	// Name is that of the instance: requestcount.quota.istio-system.
	Name          string        `json:"name"`
	MaxAmount     int64         `json:"maxAmount"`
	ValidDuration time.Duration `json:"validDuration"`
	// BucketDuration is how finely redisquota counted a rolling window. These count a thirty-second of the window.
	BucketDuration time.Duration `json:"bucketDuration"`
	// RateLimitAlgorithm is redisquota's; memquota's window rolls.
	RateLimitAlgorithm string `json:"rateLimitAlgorithm" enum:"FIXED_WINDOW,ROLLING_WINDOW"`
	// Overrides stand in the place of MaxAmount and ValidDuration: the first whose dimensions fit.
	Overrides []QuotaOverride `json:"overrides"`
}

// QuotaOverride is a limit for some dimensions.
type QuotaOverride struct {
	Dimensions map[string]string `json:"dimensions"`
	MaxAmount  int64             `json:"maxAmount"`
	// ValidDuration is memquota's own; redisquota's is that of the quota.
	ValidDuration time.Duration `json:"validDuration"`
}

// MemQuota is a handler that counts in mixer's memory
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/memquota/).
type MemQuota struct {
	Quotas []QuotaLimit `json:"quotas"`
	// MinDeduplicationDuration let a proxy of Istio repeat a call. These tell each count once.
	MinDeduplicationDuration time.Duration `json:"minDeduplicationDuration"`
}

func memQuota() Adapter {
	return Adapter{
		Name: "memquota", Templates: []string{"quota"}, newParams: func() any { return &MemQuota{} },
		validate: func(path Path, params any) (ps Problems) {
			for i := range params.(*MemQuota).Quotas {
				q, at := &params.(*MemQuota).Quotas[i], path.At("quotas", i)
				validateQuotaLimit(&ps, at, q)
				if q.RateLimitAlgorithm != "" {
					ps.invalid(at.At("rateLimitAlgorithm"), "is redisquota's; memquota's window rolls")
				}
				for j, o := range q.Overrides {
					validateWindow(&ps, at.At("overrides", j, "validDuration"), o.ValidDuration)
				}
			}
			return ps
		},
	}
}

// RedisQuota is a handler that counts in a Redis, which several mixers may share
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/redisquota/).
type RedisQuota struct {
	Quotas []QuotaLimit `json:"quotas"`
	// RedisServerURL is host:port or redis://host:port.
	RedisServerURL string `json:"redisServerUrl"`
	// ConnectionPoolSize has no effect: mixer makes as many connections as it needs.
	ConnectionPoolSize int64 `json:"connectionPoolSize"`
}

func redisQuota() Adapter {
	return Adapter{
		Name: "redisquota", Templates: []string{"quota"}, newParams: func() any { return &RedisQuota{} },
		validate: func(path Path, params any) (ps Problems) {
			r := params.(*RedisQuota)
			if text := checkRedis(r.RedisServerURL); text != "" {
				ps.invalid(path.At("redisServerUrl"), text)
			}
			for i := range r.Quotas {
				q, at := &r.Quotas[i], path.At("quotas", i)
				validateQuotaLimit(&ps, at, q)
				if q.RateLimitAlgorithm == "ROLLING_WINDOW" && (q.BucketDuration <= 0 || q.BucketDuration > q.ValidDuration) {
					ps.invalid(at.At("bucketDuration"), fmt.Sprintf("want more than 0 and at most the validDuration of %s, got %s", q.ValidDuration, q.BucketDuration))
				}
				for j, o := range q.Overrides {
					if o.ValidDuration != 0 {
						ps.invalid(at.At("overrides", j, "validDuration"), "is memquota's: an override of redisquota has the duration of its quota")
					}
				}
			}
			return ps
		},
	}
}

func checkRedis(address string) string {
	if address == "" {
		return "want where Redis is, such as redis:6379"
	}
	u, err := url.Parse("redis://" + address)
	if full, ferr := url.Parse(address); ferr == nil && full.Host != "" {
		u, err = full, nil
	}
	if err != nil || u.Hostname() == "" || u.Scheme != "redis" && u.Scheme != "rediss" {
		return "want host:port or redis://host:port, got " + describe(address)
	}
	return ""
}

func validateQuotaLimit(ps *Problems, path Path, q *QuotaLimit) {
	if q.Name == "" {
		ps.required(path.At("name"), "want the name of an instance, such as requestcount.quota.istio-system")
	}
	if q.MaxAmount < 1 {
		ps.invalid(path.At("maxAmount"), fmt.Sprintf("want 1 or more, got %d", q.MaxAmount))
	}
	validateWindow(ps, path.At("validDuration"), q.ValidDuration)
	for i, o := range q.Overrides {
		if o.MaxAmount < 1 {
			ps.invalid(path.At("overrides", i, "maxAmount"), fmt.Sprintf("want 1 or more, got %d", o.MaxAmount))
		}
		if len(o.Dimensions) == 0 {
			ps.required(path.At("overrides", i, "dimensions"), "want at least one dimension with its value")
		}
	}
}

func validateWindow(ps *Problems, path Path, d time.Duration) {
	if d < minRateWindow || d > maxRateWindow {
		ps.invalid(path, fmt.Sprintf("want %s to %s, got %s", minRateWindow, maxRateWindow, d))
	}
}
