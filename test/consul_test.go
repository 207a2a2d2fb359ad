//go:build suites

package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// consulImages puts our own bookinfo into Istio's compose file: its images are those of another time.
const consulImages = `
services:
  details-v1: &app
    image: composure-example/bookinfo:latest
    pull_policy: never
    command: [details]
  ratings-v1: {<<: *app, command: [ratings]}
  reviews-v1: {<<: *app, command: [reviews], environment: {SERVICE_VERSION: v1}}
  reviews-v2: {<<: *app, command: [reviews], environment: {SERVICE_VERSION: v2, ENABLE_RATINGS: "true"}}
  reviews-v3: {<<: *app, command: [reviews], environment: {SERVICE_VERSION: v3, ENABLE_RATINGS: "true", STAR_COLOR: red}}
  productpage-v1: {<<: *app, command: [productpage], ports: !override ["127.0.0.1:0:9080"]}
`

// TestConsulBookinfo runs the compose file and the routes that Istio 1.0.6 itself had for Docker: names, versions and
// protocols come from its SERVICE_* variables, and the hosts end in service.consul.
func TestConsulBookinfo(t *testing.T) {
	file := must(os.ReadFile(corpus(t, "platform/consul/bookinfo.yaml")))
	p := newProject(t, map[string]string{"bookinfo.yaml": string(file), "images.yaml": consulImages})
	// The file expects this network, and a static address in it.
	if out, err := exec.CommandContext(t.Context(), "docker", "network", "create", "--subnet", "172.28.0.0/16", "consul_istiomesh").CombinedOutput(); err != nil {
		t.Skipf("the network that the file expects can't be made here: %s", out)
	}
	t.Cleanup(func() {
		p.composeAfter("down", "--volumes", "--timeout", "5")
		_ = exec.Command("docker", "network", "rm", "consul_istiomesh").Run()
	})

	r := p.tryMeshctl("compose", "inject", "-f", "bookinfo.yaml", "-f", "images.yaml")
	p.must(r, "meshctl", []string{"compose", "inject"})
	line := ""
	for l := range strings.Lines(r.stderr) {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, "COMPOSE_FILE=") {
			line = l
		}
	}
	if line == "" {
		t.Fatalf("inject printed no COMPOSE_FILE line: %s", r.stderr)
	}
	p.write(map[string]string{".env": line + "\n"})
	p.up()
	page := "http://" + p.published("productpage-v1-mesh-sandbox", 9080)

	eventually(t, "productpage", func() string {
		if status, body := get(t, page+"/productpage"); status != http.StatusOK || !strings.Contains(body, "The Comedy of Errors") {
			return fmt.Sprintf("status %d: %.300s", status, body)
		}
		return ""
	})
	apply := func(file string) { p.meshctl("apply", "-f", corpus(t, "platform/consul/"+file)) }
	apply("destination-rule-all.yaml")
	apply("virtual-service-all-v1.yaml")
	eventually(t, "all to v1", func() string {
		if seen := share(t, page, 20); seen["v1"] != 20 {
			return fmt.Sprint(seen)
		}
		return ""
	})
	apply("virtual-service-reviews-50-v3.yaml")
	eventually(t, "half to v3", func() string {
		if seen := share(t, page, 40); seen["v3"] == 0 || seen["v2"] > 0 {
			return fmt.Sprint(seen)
		}
		return ""
	})
	shares(t, page, 400, map[string]float64{"v1": .5, "v3": .5})
	apply("virtual-service-reviews-test-v2.yaml")
	eventually(t, "jason to v2", func() string {
		if v := reviewsVersion(t, page, "Cookie", jason(t, page)); v != "v2" {
			return v
		}
		return ""
	})
	if m := p.meshctl("get", "endpoints", "-o", "yaml"); !strings.Contains(m, "172.28.0.14") {
		t.Errorf("productpage's static address is not among the endpoints:\n%s", m)
	}
}
