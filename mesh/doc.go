// Package mesh holds the facts that every part of Composure shares: who a
// workload is, where its parts listen, and which paths and numbers two programs
// must agree on. It has no behaviour beyond parsing and formatting.
package mesh
