package filter

import (
	"strconv"

	"github.com/composure-mesh/composure/proxy/http1"
)

// GRPCOf is the gRPC status that stands for an HTTP status
// (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
func GRPCOf(status int) int {
	switch status {
	case 200:
		return 0
	case 400:
		return 13 // internal
	case 401:
		return 16 // unauthenticated
	case 403:
		return 7 // permission denied
	case 404:
		return 12 // unimplemented
	case 429, 502, 503, 504:
		return 14 // unavailable
	}
	return 2 // unknown
}

// statusOfGRPC is the HTTP status that a client which does not speak gRPC gets for a gRPC status, as Envoy has it; 0
// for what is no status.
func statusOfGRPC(status int) int {
	table := [...]int{200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401}
	if status < 0 || status >= len(table) {
		return 0
	}
	return table[status]
}

// StatusOfGRPC is the HTTP status that stands for a Grpc-Status field's value; 500 where that is none.
func StatusOfGRPC(value []byte) int {
	n, err := strconv.Atoi(string(value))
	if status := statusOfGRPC(n); err == nil && status != 0 {
		return status
	}
	return 500
}

// IsGRPC reports whether a Content-Type is gRPC's, with or without what says how messages are written
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). gRPC-Web is another protocol.
func IsGRPC(v []byte) bool {
	const want = "application/grpc"
	return len(v) >= len(want) && http1.EqualFold(v[:len(want)], want) &&
		(len(v) == len(want) || v[len(want)] == '+' || v[len(want)] == ';')
}
