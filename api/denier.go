package api

import (
	"fmt"
	"time"
)

// Denier is a handler that says no
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/denier/).
type Denier struct {
	Status DenierStatus `json:"status"`
	// ValidDuration and ValidUseCount let a proxy of Istio keep the answer. These proxies decide anew each time.
	ValidDuration time.Duration `json:"validDuration"`
	ValidUseCount int32         `json:"validUseCount"`
}

// DenierStatus is a google.rpc.Status.
type DenierStatus struct {
	Code    int32  `json:"code"`
	Message string `json:"message"`
}

// RPC codes that people may use (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto).
const (
	rpcFailedPrecondition = 9 // the code of a denier that names none
	maxRPCCode            = 16
)

func denier() Adapter {
	return Adapter{
		Name: "denier", Templates: []string{"checknothing", "listentry"},
		newParams: func() any {
			return &Denier{Status: DenierStatus{Code: rpcFailedPrecondition}, ValidDuration: 5 * time.Second, ValidUseCount: 1000}
		},
		validate: func(path Path, params any) (ps Problems) {
			if code := params.(*Denier).Status.Code; code < 1 || code > maxRPCCode {
				ps.invalid(path.At("status", "code"), fmt.Sprintf("want a code of google.rpc between 1 and %d, such as 7, PERMISSION_DENIED, got %d", maxRPCCode, code))
			}
			return ps
		},
	}
}
