package api

import (
	"fmt"
	"net"
)

// Fluentd is a handler that sends log entries to a fluentd or fluent-bit, by its forward protocol
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/fluentd/).
type Fluentd struct {
	// Address is host:port.
	Address string `json:"address"`
	// IntegerDuration sends durations as whole milliseconds, not as text.
	IntegerDuration bool `json:"integerDuration"`
}

func fluentd() Adapter {
	return Adapter{
		Name: "fluentd", Templates: []string{"logentry"},
		newParams: func() any { return &Fluentd{Address: "localhost:24224"} },
		validate: func(path Path, params any) (ps Problems) {
			address := params.(*Fluentd).Address
			if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
				ps.invalid(path.At("address"), fmt.Sprintf("want host:port, such as fluentd:24224, got %q", address))
			}
			return ps
		},
	}
}
