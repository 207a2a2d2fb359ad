// Package mixer is the telemetry plane: proxies report to it what they have counted, and it serves the sum as
// Prometheus metrics. It is never on the path of a request (design D12): a proxy that can't reach it goes on, and
// its next report says all that the lost ones did.
//
// Counters live in memory. They begin anew when mixer starts, with everything that the running proxies have counted,
// and never fall while it runs, whichever proxies come, go and come back.
package mixer
