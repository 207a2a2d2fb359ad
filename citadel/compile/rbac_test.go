package compile_test

import (
	"strings"
	"testing"

	"github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// The files of Istio 1.0's task on role-based access control
// (https://istio.io/v1.0/docs/tasks/security/role-based-access-control/), with the names of this mesh.
const (
	rbacOn = `
apiVersion: rbac.istio.io/v1alpha1
kind: RbacConfig
metadata: {name: default}
spec: {mode: 'ON_WITH_INCLUSION', inclusion: {namespaces: ["default"]}}
`
	rbacViewer = `
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {name: viewer, namespace: default}
spec:
  rules:
  - services: ["*"]
    methods: ["GET"]
    constraints:
    - key: destination.labels[app]
      values: ["api", "far"]
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {name: bind-viewer, namespace: default}
spec:
  subjects:
  - user: "*"
  roleRef: {kind: ServiceRole, name: "viewer"}
`
	rbacWriter = `
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {name: writer, namespace: default}
spec:
  rules:
  - services: ["api.default.svc.cluster.local"]
    paths: ["/items/*", "*/notes"]
    methods: ["POST"]
    constraints: [{key: "request.headers[version]", values: ["v1", "v2"]}]
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {name: bind-writer, namespace: default}
spec:
  subjects:
  - user: "cluster.local/ns/default/sa/web"
  - properties: {source.namespace: "money", "request.auth.claims[role]": editor}
  roleRef: {kind: ServiceRole, name: "writer"}
`
)

func TestRBAC(t *testing.T) {
	permissive := func(s string) string {
		return strings.Replace(s, "spec:\n  subjects", "spec:\n  mode: PERMISSIVE\n  subjects", 1)
	}
	web, bank := "spiffe://cluster.local/ns/default/sa/web", "spiffe://cluster.local/ns/money/sa/bank"
	editor := &exchange.Auth{Claims: &exchange.Claim{Fields: map[string]*exchange.Claim{"role": {Values: []string{"editor"}}}}}
	for name, c := range map[string]struct {
		objects, workload  string
		peer, method, path string
		header             string
		auth               *exchange.Auth
		want               bool
	}{
		"off without a configuration":       {rbacViewer, "web", "", "POST", "/", "", nil, true},
		"on: nothing is allowed":            {rbacOn, "api", web, "GET", "/", "", nil, false},
		"another namespace is not included": {rbacOn, "bank", web, "GET", "/", "", nil, true},
		"everyone may look":                 {rbacOn + rbacViewer, "api", "", "GET", "/", "", nil, true},
		"and do no more":                    {rbacOn + rbacViewer, "api", web, "POST", "/", "", nil, false},
		"at what the labels name":           {rbacOn + rbacViewer, "web", "", "GET", "/", "", nil, false},
		"a user":                            {rbacOn + rbacWriter, "api", web, "POST", "/items/1", "v1", nil, true},
		"a user with a path of the other":   {rbacOn + rbacWriter, "api", web, "POST", "/x/notes", "v2", nil, true},
		"a user elsewhere":                  {rbacOn + rbacWriter, "api", web, "POST", "/x", "v1", nil, false},
		"a user with another version":       {rbacOn + rbacWriter, "api", web, "POST", "/items/1", "v3", nil, false},
		"a user without the header":         {rbacOn + rbacWriter, "api", web, "POST", "/items/1", "", nil, false},
		"another user":                      {rbacOn + rbacWriter, "api", bank, "POST", "/items/1", "v1", nil, false},
		"properties":                        {rbacOn + rbacWriter, "api", bank, "POST", "/items/1", "v1", editor, true},
		"half of the properties":            {rbacOn + rbacWriter, "api", "", "POST", "/items/1", "v1", editor, false},
		"a role for another service":        {rbacOn + rbacWriter, "far", web, "POST", "/items/1", "v1", nil, false},
		"a binding that is tried":           {rbacOn + permissive(rbacViewer), "api", "", "GET", "/", "", nil, false},
		"a configuration that is tried":     {strings.Replace(rbacOn, "{mode", "{enforcement_mode: PERMISSIVE, mode", 1) + rbacViewer, "api", "", "POST", "/", "", nil, true},
		"off":                               {strings.Replace(rbacOn, "{mode: 'ON_WITH_INCLUSION', inclusion: {namespaces: [\"default\"]}}", "{mode: 'OFF'}", 1), "api", "", "POST", "/", "", nil, true},
		"on everywhere":                     {strings.Replace(rbacOn, "{mode: 'ON_WITH_INCLUSION', inclusion: {namespaces: [\"default\"]}}", "{mode: 'ON'}", 1), "bank", "", "POST", "/", "", nil, false},
		"excluded":                          {strings.Replace(rbacOn, "{mode: 'ON_WITH_INCLUSION', inclusion: {namespaces: [\"default\"]}}", "{mode: 'ON_WITH_EXCLUSION', exclusion: {services: [\"api.default.svc.cluster.local\"]}}", 1), "api", "", "POST", "/", "", nil, true},
		"not excluded":                      {strings.Replace(rbacOn, "{mode: 'ON_WITH_INCLUSION', inclusion: {namespaces: [\"default\"]}}", "{mode: 'ON_WITH_EXCLUSION', exclusion: {services: [\"api.default.svc.cluster.local\"]}}", 1), "web", "", "POST", "/", "", nil, false},
		"the newer name wins":               {rbacOn + "---" + strings.Replace(strings.Replace(rbacOn, "RbacConfig", "ClusterRbacConfig", 1), "{mode: 'ON_WITH_INCLUSION', inclusion: {namespaces: [\"default\"]}}", "{mode: 'OFF'}", 1), "api", "", "POST", "/", "", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, err := compile.New(compile.View{Facts: shop(), Intent: decode(t, c.objects)}).Compile(c.workload)
			if err != nil {
				t.Fatal(err)
			}
			policies, err := authz.Compile(s.Access, nil)
			if err != nil {
				t.Fatal(err)
			}
			r := &authz.Request{HTTP: true, Peer: c.peer, Method: []byte(c.method), Path: []byte(c.path), Authority: []byte("api"), Auth: c.auth}
			if c.header != "" {
				r.Header = http1.Header{http1.NewField("Version", c.header)}
			}
			if v := policies.Decide(r); v.Allowed != c.want {
				t.Errorf("allowed is %v, want %v, by %+v", v.Allowed, c.want, s.Access)
			}
		})
	}
	problems := compile.New(compile.View{Facts: shop(), Intent: decode(t, strings.Replace(rbacViewer, `name: "viewer"`, `name: "none"`, 1))}).CheckAll()
	if len(problems) != 1 || problems[0].Path != "spec.roleRef.name" {
		t.Errorf("problems are %v, want the role that is not there", problems)
	}
	s, _, err := compile.New(compile.View{Facts: shop(), Intent: decode(t, rbacOn+rbacWriter), TrustDomain: "td"}).Compile("api")
	if err != nil || len(s.Access) != 2 || strings.Join(s.Access[1].Rules[0].From[0].Principals, " ") != "cluster.local/ns/default/sa/web td/ns/default/sa/web" {
		t.Errorf("in another trust domain: %+v, %v", s.Access, err)
	}
}
