// Package compile turns what people want (intent) and what runs (facts) into the snapshot of one proxy. It is pure:
// equal input gives equal bytes, and nothing here reads a clock, a disk or a network.
package compile
