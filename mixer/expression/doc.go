// Package expression reads and checks the expression language of Mixer 1.0
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/expression-language/): Go's syntax for
// expressions, with | for "the first of these that is there". Every expression is typed against a vocabulary of
// attributes when it is applied, so that a proxy never meets a mistake that could have been seen before; what comes
// out is a [snapshot.Expression], which proxy/expression evaluates.
//
// Types, messages of type errors and what a function means are Mixer's. Beyond Mixer, an element of a map may be the
// target of a method, and too many arguments are an error.
package expression
