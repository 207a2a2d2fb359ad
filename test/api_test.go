//go:build suites

package test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const someRoute = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server}
spec:
  hosts: [server]
  http:
  - route:
    - destination: {host: server}
`

// TestAPI drives the mesh with the clients of Kubernetes: kubectl, and client-go's dynamic informer.
func TestAPI(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": walkCompose, "route.yaml": someRoute, "rule.yaml": `
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: server}
spec:
  host: server
  subsets:
  - {name: v1, labels: {version: v1}}
`})
	p.inject()
	p.up()
	server := apiProxy(t, p)

	kubectl := func(args ...string) string {
		t.Helper()
		return p.must(p.run(t.Context(), "kubectl", append([]string{"--server", server}, args...)...), "kubectl", args)
	}

	events := informer(t, server)
	if out := kubectl("apply", "-f", "route.yaml"); !strings.Contains(out, "server created") {
		t.Errorf("kubectl apply says %q", out)
	}
	if got := next(t, events); got != "add server" {
		t.Errorf("the informer saw %q, want add server", got)
	}
	if out := kubectl("get", "vs", "-o", "yaml"); !strings.Contains(out, "host: server") {
		t.Errorf("kubectl get vs -o yaml says:\n%s", out)
	}
	if out := kubectl("get", "virtualservices"); !strings.Contains(out, "HOSTS") || !strings.Contains(out, "server") {
		t.Errorf("kubectl get virtualservices says:\n%s", out)
	}
	if out := kubectl("get", "endpoints"); !strings.Contains(out, "server") {
		t.Errorf("kubectl get endpoints says:\n%s", out)
	}

	watch := exec.CommandContext(t.Context(), "kubectl", "--server", server, "get", "dr", "-w", "-o", "name")
	seen := make(chan struct{})
	watch.Stdout = notify(seen, "destinationrule.networking.istio.io/server")
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	if out := kubectl("apply", "-f", "rule.yaml"); !strings.Contains(out, "server created") {
		t.Errorf("kubectl apply says %q", out)
	}
	select {
	case <-seen:
	case <-time.After(20 * time.Second):
		t.Error("kubectl get dr -w saw no destination rule")
	}
	_ = watch.Process.Kill()
	_ = watch.Wait()

	if out := kubectl("apply", "-f", "route.yaml"); !strings.Contains(out, "unchanged") {
		t.Errorf("kubectl apply again says %q", out)
	}
	if out := p.meshctl("apply", "-f", "route.yaml"); !strings.Contains(out, "server") {
		t.Errorf("meshctl apply says %q", out)
	}
	kubectl("delete", "-f", "route.yaml")
	for got := ""; got != "delete server"; {
		got = next(t, events)
	}
	if r := p.tryMeshctl("get", "vs", "server"); r.code != 3 || !strings.Contains(r.stderr, "not found") {
		t.Errorf("meshctl get of what was deleted: exit %d, %s; want 3 and not found", r.code, r.stderr)
	}
}

// informer runs client-go's dynamic informer on virtual services and passes on what it sees.
func informer(t *testing.T, server string) <-chan string {
	t.Helper()
	client := must(dynamic.NewForConfig(&rest.Config{Host: server}))
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	resource := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	events := make(chan string, 100)
	say := func(verb string) func(any) {
		return func(o any) {
			if u, ok := o.(*unstructured.Unstructured); ok {
				events <- verb + " " + u.GetName()
			}
		}
	}
	i := factory.ForResource(resource).Informer()
	must(i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: say("add"), DeleteFunc: say("delete"), UpdateFunc: func(_, o any) { say("update")(o) },
	}))
	factory.Start(t.Context().Done())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
		t.Fatal("the informer never synced")
	}
	return events
}

func next(t *testing.T, events <-chan string) string {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("the informer saw nothing")
		return ""
	}
}
