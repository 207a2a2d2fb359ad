package apiserver_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/composure-mesh/composure/internal/apiserver"
)

var virtualServices = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}

func object(t *testing.T, subset string) *unstructured.Unstructured {
	t.Helper()
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": map[string]any{"name": "reviews", "namespace": "default"},
		"spec": map[string]any{"hosts": []any{"reviews"}, "http": []any{map[string]any{"route": []any{map[string]any{
			"destination": map[string]any{"host": "reviews", "subset": subset},
		}}}}},
	}}
}

func client(t *testing.T, url string) dynamic.ResourceInterface {
	t.Helper()
	c, err := dynamic.NewForConfig(&rest.Config{Host: url})
	if err != nil {
		t.Fatal(err)
	}
	return c.Resource(virtualServices).Namespace("default")
}

func TestInformer(t *testing.T) {
	server, store := newServer(t)
	dyn, err := dynamic.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	factory := dynamicinformer.NewDynamicSharedInformerFactory(dyn, 0)
	events := make(chan string, 16)
	tell := func(what string, o any) {
		subset, _, err := unstructured.NestedSlice(o.(*unstructured.Unstructured).Object, "spec", "http")
		if err != nil {
			t.Error(err)
		}
		events <- what + " " + subset[0].(map[string]any)["route"].([]any)[0].(map[string]any)["destination"].(map[string]any)["subset"].(string)
	}
	informer := factory.ForResource(virtualServices).Informer()
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { tell("add", o) },
		UpdateFunc: func(_, o any) { tell("update", o) },
		DeleteFunc: func(o any) { tell("delete", o) },
	})
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, server.URL)
	if _, err := c.Create(ctx, object(t, "v1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	for resource, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			t.Fatalf("%v did not sync", resource)
		}
	}
	want := func(text string) {
		t.Helper()
		if got := <-events; got != text {
			t.Fatalf("event is %q, want %q", got, text)
		}
	}
	want("add v1")
	current, err := c.Get(ctx, "reviews", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	next := object(t, "v2")
	next.SetResourceVersion(current.GetResourceVersion())
	if _, err := c.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("update v2")
	server.CloseClientConnections() // the informer picks up where it was
	_, err = store.Apply(apiserver.Key{Resource: virtualServices.GroupResource(), Namespace: "default", Name: "reviews"}, false,
		func(*unstructured.Unstructured) (*unstructured.Unstructured, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	want("delete v2")
}

func TestConflicts(t *testing.T) {
	server, _ := newServer(t)
	ctx := t.Context()
	c := client(t, server.URL)
	created, err := c.Create(ctx, object(t, "v1"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if created.GetUID() == "" || created.GetGeneration() != 1 || created.GetCreationTimestamp().Time.IsZero() {
		t.Errorf("created object has metadata %v", created.Object["metadata"])
	}
	if _, err := c.Create(ctx, object(t, "v1"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
	mine := object(t, "v2")
	mine.SetResourceVersion(created.GetResourceVersion())
	updated, err := c.Update(ctx, mine, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if updated.GetUID() != created.GetUID() || updated.GetGeneration() != 2 || !updated.GetCreationTimestamp().Time.Equal(created.GetCreationTimestamp().Time) {
		t.Errorf("updated object has metadata %v, want uid and creation of %v", updated.Object["metadata"], created.Object["metadata"])
	}
	same, err := c.Update(ctx, updated.DeepCopy(), metav1.UpdateOptions{})
	if err != nil || same.GetResourceVersion() != updated.GetResourceVersion() {
		t.Errorf("an update that changes nothing led from %s to %s, %v", updated.GetResourceVersion(), same.GetResourceVersion(), err)
	}
	stale := object(t, "v3")
	stale.SetResourceVersion(created.GetResourceVersion())
	if _, err := c.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of an old version: %v, want Conflict", err)
	}
	if _, err := c.Update(ctx, renamed(object(t, "v1"), "other"), metav1.UpdateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("update of what is not there: %v, want NotFound", err)
	}
	wrong := metav1.NewUIDPreconditions("another")
	if err := c.Delete(ctx, "reviews", metav1.DeleteOptions{Preconditions: wrong}); !apierrors.IsConflict(err) {
		t.Errorf("delete with another uid: %v, want Conflict", err)
	}
	if err := c.Delete(ctx, "reviews", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, "reviews", metav1.GetOptions{}); err != nil {
		t.Errorf("a dry run deleted: %v", err)
	}
	if err := c.Delete(ctx, "reviews", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if err := c.Delete(ctx, "reviews", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("second delete: %v, want NotFound", err)
	}
}

// A server-side apply of what is applied already changes nothing.
func TestApplyAgain(t *testing.T) {
	server, _ := newServer(t)
	c := client(t, server.URL)
	options := metav1.ApplyOptions{FieldManager: "test"}
	first, err := c.Apply(t.Context(), "reviews", object(t, "v1"), options)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Apply(t.Context(), "reviews", object(t, "v1"), options)
	if err != nil || again.GetResourceVersion() != first.GetResourceVersion() {
		t.Errorf("a second apply led from %s to %s, %v", first.GetResourceVersion(), again.GetResourceVersion(), err)
	}
	without := object(t, "v1")
	route := without.Object["spec"].(map[string]any)["http"].([]any)[0].(map[string]any)["route"].([]any)[0].(map[string]any)
	delete(route["destination"].(map[string]any), "subset")
	last, err := c.Apply(t.Context(), "reviews", without, options)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := last.MarshalJSON(); err != nil || strings.Contains(string(raw), `"subset"`) {
		t.Errorf("what is no longer applied is still there: %s, %v", raw, err)
	}
}

func renamed(o *unstructured.Unstructured, name string) *unstructured.Unstructured {
	o.SetName(name)
	return o
}

func TestInvalidHasCauses(t *testing.T) {
	server, _ := newServer(t)
	bad := object(t, "v1")
	bad.Object["spec"].(map[string]any)["hots"] = []any{}
	bad.Object["spec"].(map[string]any)["tcp"] = []any{map[string]any{"match": []any{map[string]any{"sourceSubnet": "10.0.0.0/8"}}}}
	_, err := client(t, server.URL).Create(t.Context(), bad, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Fatalf("error is %v, want Invalid", err)
	}
	causes := err.(apierrors.APIStatus).Status().Details.Causes
	want := []metav1.StatusCause{
		{Type: metav1.CauseTypeFieldValueInvalid, Field: "spec.hots", Message: `unknown field, did you mean "hosts"?`},
		{Type: metav1.CauseTypeFieldValueNotSupported, Field: "spec.tcp[0].match[0].sourceSubnet", Message: "is not supported yet"},
	}
	if len(causes) != 2 || causes[0] != want[0] || causes[1] != want[1] {
		t.Errorf("causes are %v, want %v", causes, want)
	}
}

func TestDiscoveryClient(t *testing.T) {
	server, _ := newServer(t)
	d, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if doc, err := d.OpenAPISchema(); err != nil || doc.GetSwagger() != "2.0" {
		t.Errorf("OpenAPI v2 is %v, %v", doc, err)
	}
	_, lists, err := d.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, l := range lists {
		got[l.GroupVersion] = len(l.APIResources)
	}
	for gv, n := range map[string]int{"v1": 3, "networking.istio.io/v1": 6, "networking.istio.io/v1beta1": 6, "networking.istio.io/v1alpha3": 6} {
		if got[gv] != n {
			t.Errorf("%s has %d resources, want %d", gv, got[gv], n)
		}
	}
}

// Requests that are wrong get a Status that says so, with the code that Kubernetes gives.
func TestRequests(t *testing.T) {
	const many = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
	body := func(o *unstructured.Unstructured) string {
		raw, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	valid := body(object(t, "v1"))
	deep := `{"spec":` + strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 101)
	cases := []struct {
		name, method, path, contentType, accept, body string
		code                                          int
		want                                          string
	}{
		{"no such group", "GET", "/apis/nope.io/v1/things", "", "", "", 404, "nothing at /apis/nope.io/v1/things"},
		{"no such object", "GET", many + "/nope", "", "", "", 404, `virtualservices.networking.istio.io \"nope\" not found`},
		{"view is read-only", "DELETE", "/api/v1/namespaces/default/endpoints/reviews", "", "", "", 405, "MethodNotAllowed"},
		{"no collection delete", "DELETE", many, "", "", "", 405, "MethodNotAllowed"},
		{"strategic merge", "PATCH", many + "/reviews", "application/strategic-merge-patch+json", "", "{}", 415, "UnsupportedMediaType"},
		{"protobuf body", "POST", many, "application/vnd.kubernetes.protobuf", "", "x", 415, "want application/json"},
		{"protobuf answer", "GET", many, "", "application/vnd.kubernetes.protobuf", "", 406, "NotAcceptable"},
		{"malformed", "POST", many, "", "", "{", 400, "malformed JSON"},
		{"duplicate key", "POST", many, "", "", `{"kind":"a","kind":"b"}`, 400, "duplicate"},
		{"deep", "POST", many, "", "", deep, 400, "nested deeper than 64 levels"},
		{"large", "POST", many, "", "", `"` + strings.Repeat("x", 2<<20) + `"`, 413, "RequestEntityTooLarge"},
		{"other kind", "POST", many, "", "", `{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":{"name":"a"},"spec":{"servers":[{"hosts":["*"],"port":{"number":80,"name":"a","protocol":"HTTP"}}]}}`, 400, "the object is a Gateway"},
		{"other namespace", "POST", "/apis/networking.istio.io/v1/namespaces/prod/virtualservices", "", "", valid, 400, `not that of the request, \"prod\"`},
		{"other name", "PUT", many + "/reviews2", "", "", valid, 404, "not found"},
		{"generateName", "POST", many, "", "", strings.Replace(valid, `"name":"reviews"`, `"generateName":"reviews"`, 1), 422, "metadata.generateName: is not supported yet"},
		{"dry run of a part", "POST", many + "?dryRun=Some", "", "", valid, 400, "dryRun: want All"},
		{"label selector", "GET", many + "?labelSelector=a%20b", "", "", "", 400, "labelSelector"},
		{"field selector", "GET", many + "?fieldSelector=spec.hosts%3Dx", "", "", "", 400, "want metadata.name or metadata.namespace"},
		{"watch of another store", "GET", many + "?watch=1&resourceVersion=999999", "", "", "", 410, "Expired"},
		{"resourceVersion", "GET", many + "?watch=1&resourceVersion=x", "", "", "", 400, "want one that this server gave"},
		{"JSON patch", "PATCH", many + "/reviews", "application/json-patch+json", "", "{}", 400, "JSON patch"},
		{"apply without manager", "PATCH", many + "/reviews", "application/apply-patch+yaml", "", valid, 400, "fieldManager"},
		{"namespace", "GET", "/api/v1/namespaces/any", "", "", "", 200, `"phase":"Active"`},
		{"openapi", "GET", "/openapi/v3/apis/networking.istio.io/v1", "", "", "", 200, "fieldValidation"},
		{"health", "GET", "/healthz", "", "", "", 200, "ok"},
	}
	server, store := newServer(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.contentType != "" {
				req.Header.Set("Content-Type", c.contentType)
			}
			if c.accept != "" {
				req.Header.Set("Accept", c.accept)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.code || !strings.Contains(string(raw), c.want) {
				t.Errorf("answer is %d %s, want %d and %q", resp.StatusCode, raw, c.code, c.want)
			}
			if c.code >= 400 {
				var st metav1.Status
				if err := json.Unmarshal(raw, &st); err != nil || st.Kind != "Status" || int(st.Code) != c.code || st.Status != metav1.StatusFailure {
					t.Errorf("answer is no Status of %d: %v, %v", c.code, st, err)
				}
			}
		})
	}
	if n := store.Revision(); n != 0 {
		t.Errorf("store is at revision %d, want 0: nothing was right", n)
	}
}
