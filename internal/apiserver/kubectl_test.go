package apiserver_test

import (
	"bufio"
	"bytes"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/testcert"
)

// newServer serves the kinds of api from a store in a file, and one view, over loopback.
func newServer(t *testing.T) (*httptest.Server, *apiserver.Store) {
	t.Helper()
	store, err := apiserver.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	views := apiserver.NewMemory(1)
	err = views.Replace(schema.GroupResource{Resource: "endpoints"}, []*unstructured.Unstructured{{Object: map[string]any{
		"apiVersion": "v1", "kind": "Endpoints", "metadata": map[string]any{"name": "reviews", "namespace": "default"},
		"subsets": []any{map[string]any{"addresses": []any{map[string]any{"ip": "172.20.0.3"}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	handler := apiserver.New(apiserver.Config{
		Kinds: api.Kinds(), Store: store,
		Views: []apiserver.View{{Kind: "Endpoints", Plural: "endpoints", Singular: "endpoints", ShortNames: []string{"ep"}, Columns: []apiserver.ViewColumn{
			{Name: "Endpoints", Cell: func(u *unstructured.Unstructured) any { return "172.20.0.3:9080" }},
		}}},
		ViewStore: views,
		Warn: func(o *api.Object) []string {
			if o.Meta.Labels["warn"] != "" {
				return []string{`spec.hosts[0]: "nobody" is served by nobody`}
			}
			return nil
		},
		Version: "test", Log: slog.New(slog.DiscardHandler),
	})
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return server, store
}

// kubectl runs the real kubectl against a server.
type kubectl struct {
	t    *testing.T
	url  string
	home string
}

func newKubectl(t *testing.T, url string) *kubectl {
	t.Helper()
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skipf("no kubectl: %v", err)
	}
	return &kubectl{t: t, url: url, home: t.TempDir()}
}

func (k *kubectl) command(stdin string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(k.t.Context(), "kubectl", append([]string{"--server", k.url, "--cache-dir", k.home}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+k.home, "KUBECONFIG="+filepath.Join(k.home, "none"))
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// run returns what kubectl wrote, stdout and stderr, and whether it succeeded.
func (k *kubectl) run(stdin string, args ...string) (string, bool) {
	k.t.Helper()
	var out bytes.Buffer
	cmd := k.command(stdin, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err == nil
}

// must fails the test unless kubectl succeeds and writes each of want.
func (k *kubectl) must(stdin string, args []string, want ...string) string {
	k.t.Helper()
	out, ok := k.run(stdin, args...)
	if !ok {
		k.t.Fatalf("kubectl %s failed:\n%s", strings.Join(args, " "), out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			k.t.Errorf("kubectl %s: want %q in:\n%s", strings.Join(args, " "), w, out)
		}
	}
	return out
}

func reviews(version, subset string) string {
	return `apiVersion: networking.istio.io/` + version + `
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: ` + subset + `}
`
}

func TestKubectl(t *testing.T) {
	server, _ := newServer(t)
	k := newKubectl(t, server.URL)

	k.must("", []string{"api-resources"}, "virtualservices", "vs", "networking.istio.io/v1", "endpoints", "namespaces")
	k.must(reviews("v1alpha3", "v1"), []string{"apply", "-f", "-"}, "virtualservice.networking.istio.io/reviews created")
	k.must(reviews("v1alpha3", "v1"), []string{"apply", "-f", "-"}, "reviews unchanged")
	k.must(reviews("v1beta1", "v2"), []string{"apply", "-f", "-"}, "reviews configured")
	k.must("", []string{"get", "vs"}, "NAME", "GATEWAYS", "HOSTS", "AGE", `["reviews"]`)
	k.must("", []string{"get", "vs", "-A"}, "NAMESPACE", "default")
	k.must("", []string{"get", "vs", "reviews", "-o", "yaml"}, "apiVersion: networking.istio.io/v1\n", "subset: v2", "generation: 2", "uid: ")
	k.must("", []string{"get", "virtualservices.v1alpha3.networking.istio.io", "reviews", "-o", "yaml"}, "apiVersion: networking.istio.io/v1alpha3\n")
	k.must("", []string{"get", "istio-io"}, "reviews")
	k.must("", []string{"get", "ns"}, "default")
	k.must("", []string{"get", "endpoints"}, "172.20.0.3:9080")
	k.must("", []string{"patch", "vs", "reviews", "--type", "merge", "-p", `{"spec":{"hosts":["reviews","ratings"]}}`}, "patched")
	k.must("", []string{"patch", "vs", "reviews", "--type", "json", "-p", `[{"op":"remove","path":"/spec/hosts/1"}]`}, "patched")
	k.must("", []string{"label", "vs", "reviews", "tier=front"}, "labeled")
	k.must("", []string{"get", "vs", "-l", "tier=front"}, "reviews")
	k.must("", []string{"get", "vs", "-l", "tier=back"}, "No resources found")
	k.must(strings.Replace(reviews("v1", "v3"), "name: reviews", "name: reviews\n  labels: {warn: me}", 1), []string{"apply", "-f", "-"},
		"configured", `Warning: spec.hosts[0]: "nobody" is served by nobody`)
	k.must(reviews("v1", "v9"), []string{"apply", "--dry-run=server", "-f", "-"}, "configured (server dry run)")
	k.must("", []string{"get", "vs", "reviews", "-o", "jsonpath={.spec.http[0].route[0].destination.subset}"}, "v3")
	k.must("", []string{"explain", "vs.spec.http.match"}, "ignoreUriCase")
	k.must("", []string{"get", "--raw", "/version"}, `"gitVersion":"v1.31.0-composure.test"`)
	if out, _ := k.run(reviews("v1", "v9"), "diff", "-f", "-"); !strings.Contains(out, "+        subset: v9") {
		t.Errorf("kubectl diff: want the new subset in:\n%s", out)
	}
	k.must(reviews("v1", "v4"), []string{"replace", "-f", "-"}, "replaced")
	k.must("", []string{"describe", "vs", "reviews"}, "Subset:  v4")
	k.must("", []string{"annotate", "vs", "reviews", "note=x"}, "annotated")
	k.must("", []string{"wait", "vs/reviews", "--for", "jsonpath={.metadata.annotations.note}=x"}, "condition met")
	k.must("", []string{"delete", "vs", "reviews"}, `"reviews" deleted`)
	k.must("", []string{"get", "vs"}, "No resources found")
	k.must(reviews("v1", "v1"), []string{"create", "-f", "-"}, "created")
	k.must("", []string{"delete", "vs", "--all"}, `"reviews" deleted`)
}

func TestKubectlServerSideApply(t *testing.T) {
	server, _ := newServer(t)
	k := newKubectl(t, server.URL)
	k.must(reviews("v1", "v1"), []string{"apply", "--server-side", "-f", "-"}, "serverside-applied")
	k.must(reviews("v1", "v1"), []string{"apply", "--server-side", "-f", "-"}, "serverside-applied")
	k.must(reviews("v1", "v2"), []string{"apply", "--server-side", "-f", "-"}, "serverside-applied")
	k.must("", []string{"get", "vs", "reviews", "-o", "yaml", "--show-managed-fields"}, "subset: v2", "manager: kubectl", "operation: Apply")
	out, ok := k.run(reviews("v1", "v3"), "apply", "--server-side", "--field-manager", "other", "-f", "-")
	if ok || !strings.Contains(out, "conflict") || !strings.Contains(out, ".spec.http") {
		t.Errorf("want a conflict that names the field, got:\n%s", out)
	}
	k.must(reviews("v1", "v3"), []string{"apply", "--server-side", "--force-conflicts", "--field-manager", "other", "-f", "-"}, "serverside-applied")
}

func TestKubectlRefused(t *testing.T) {
	server, store := newServer(t)
	k := newKubectl(t, server.URL)
	bad := strings.ReplaceAll(reviews("v1", "v1"), "subset:", "subst:") + "    fault: {delay: {exponentialDelay: 1s}}\n"
	out, ok := k.run(bad, "apply", "-f", "-")
	if ok {
		t.Errorf("want a refusal, got:\n%s", out)
	}
	for _, want := range []string{`spec.http[0].route[0].destination.subst: `, `unknown field, did you mean "subset"?`, "spec.http[0].fault.delay.exponentialDelay: ", "is not supported yet"} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in:\n%s", want, out)
		}
	}
	if n := store.Revision(); n != 0 {
		t.Errorf("store is at revision %d after a refusal, want 0", n)
	}
}

func TestKubectlWatch(t *testing.T) {
	server, _ := newServer(t)
	k := newKubectl(t, server.URL)
	k.must(reviews("v1", "v1"), []string{"apply", "-f", "-"}, "created")
	cmd := k.command("", "get", "vs", "-w", "--output-watch-events")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	lines := bufio.NewScanner(out)
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "EVENT") {
				continue
			}
			if !strings.HasPrefix(lines.Text(), want) {
				t.Fatalf("watch wrote %q, want %s", lines.Text(), want)
			}
			return
		}
		t.Fatalf("watch ended, want %s", want)
	}
	next("ADDED")
	k.must(reviews("v1", "v2"), []string{"apply", "-f", "-"}, "configured")
	next("MODIFIED")
	k.must("", []string{"delete", "vs", "reviews"}, "deleted")
	next("DELETED")
}

// TestKubectlSecrets: the ways in which people make the secrets of a gateway.
func TestKubectlSecrets(t *testing.T) {
	server, store := newServer(t)
	k := newKubectl(t, server.URL)
	dir := t.TempDir()
	crt, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	_, chain, private := testcert.New(t, "shop.example")
	for file, content := range map[string][]byte{crt: chain, key: private} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k.must("", []string{"create", "secret", "tls", "shop", "--cert", crt, "--key", key}, "secret/shop created")
	k.must("", []string{"create", "secret", "generic", "shop-cacert", "--from-file=cacert=" + crt}, "secret/shop-cacert created")
	k.must("", []string{"get", "secrets"}, "kubernetes.io/tls", "Opaque")
	held := func() string {
		return store.Get(apiserver.Key{Resource: schema.GroupResource{Resource: "secrets"}, Namespace: "default", Name: "text"}).Object["data"].(map[string]any)["cacert"].(string)
	}
	text := "apiVersion: v1\nkind: Secret\nmetadata: {name: text}\nstringData: {cacert: one}\n"
	k.must(text, []string{"apply", "-f", "-"}, "secret/text created")
	if got := held(); got != "b25l" {
		t.Errorf("the secret holds %q, want the text in base64", got)
	}
	k.must(strings.Replace(text, "one", "two", 1), []string{"apply", "-f", "-"}, "secret/text configured")
	if got := held(); got != "dHdv" {
		t.Errorf("the secret holds %q, want the new text in base64", got)
	}
	k.must("", []string{"patch", "secret", "text", "-p", `{"stringData":{"cacert":"one"}}`}, "patched")
	k.must("", []string{"get", "secret", "text", "-o", "jsonpath={.data.cacert}"}, "b25l")
	if out, ok := k.run("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: kubernetes.io/tls\ndata: {tls.crt: \"!\"}\n", "apply", "-f", "-"); ok || !strings.Contains(out, "data[tls.crt]: want base64") {
		t.Errorf("want a refusal, got:\n%s", out)
	}
	k.must("", []string{"delete", "secret", "text"}, "deleted")
}
