// The proxy of a workload, or a gateway. See package proxy.
package main

import "github.com/composure-mesh/composure/internal/component"

func main() {
	component.Main("proxy", map[string]component.Command{"": run, "ready": ready})
}
