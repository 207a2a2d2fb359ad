package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/adapter/webhook"
	"github.com/composure-mesh/composure/mixer/compile"
)

// What mixer posts is what the example takes, and the example keeps the last hundred.
func TestAudit(t *testing.T) {
	srv := httptest.NewServer((&audit{last: []entry{}}).handler())
	defer srv.Close()
	mixer := webhook.New(srv.URL)
	defer mixer.Close()
	for range kept + 5 {
		err := mixer.Write(t.Context(), []report.Entry{{
			Handler: "audit.handler.istio-system", Instance: "refused.logentry.istio-system", Time: time.Now(), Severity: "warning",
			Variables: []report.Variable{{Name: "code", Type: snapshot.Int64, Value: "403"}},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got []entry
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if len(got) != kept || got[0].Variables["code"] != 403.0 || got[0].Instance != "refused.logentry.istio-system" {
		t.Errorf("%d entries, the first %+v", len(got), got[:min(1, len(got))])
	}
}

// The objects beside it apply, and there is nothing to say against them.
func TestObjects(t *testing.T) {
	f, err := os.Open("audit.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	docs, err := api.DecodeYAML(api.Config(), "audit.yaml", f)
	if err != nil {
		t.Fatal(err)
	}
	var objects []*api.Object
	for _, d := range docs {
		objects = append(objects, d.Object)
	}
	for _, p := range compile.New(compile.View{Intent: objects}).CheckAll() {
		t.Errorf("%s: %s", p.Resource, p)
	}
}
