// Package proxy is the data plane: one process beside each workload, or a gateway.
//
// A captured connection is accepted (listen), its original destination looked up, its protocol told; HTTP goes to
// the engine (forward), everything else is passed as bytes (tcp). Both decide by the routing table (table), which is
// replaced as a whole whenever pilot sends a snapshot (control). What passed is told to telemetry. server.go puts the
// parts together, capture.go takes connections, drain.go ends them.
package proxy
