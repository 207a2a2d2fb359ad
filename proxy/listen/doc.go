// Package listen takes connections in: accept loops, where a captured connection was going, and what a client
// speaks, told from its first bytes without consuming them.
package listen
