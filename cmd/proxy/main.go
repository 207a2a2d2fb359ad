// The proxy of a workload, or a gateway. See package proxy.
package main

import (
	"fmt"

	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/mesh"
)

func main() {
	component.Main("proxy", map[string]component.Command{
		"":      run,
		"ready": ready,
		"dial":  component.DialTo("tcp", fmt.Sprintf("127.0.0.1:%d", mesh.PortAdmin)),
	})
}
