package pilot

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/pilot/compile"
)

// describe answers GET /debug/describe with ?service=NAME&namespace=NAMESPACE or ?workload=NAME.
func (p *Pilot) describe(w http.ResponseWriter, r *http.Request) {
	x, ok := p.Index()
	if !ok {
		httpx.Error(w, http.StatusServiceUnavailable, errors.New("there are no facts of the keeper's yet"))
		return
	}
	var d *compile.Description
	q := r.URL.Query()
	if name := q.Get("workload"); name != "" {
		if d, ok = x.(index).DescribeWorkload(name); !ok {
			httpx.Error(w, http.StatusNotFound, fmt.Errorf("there is no workload %q", name))
			return
		}
	} else {
		namespace := cmp.Or(q.Get("namespace"), "default")
		if d, ok = x.(index).DescribeService(q.Get("service"), namespace); !ok {
			httpx.Error(w, http.StatusNotFound, fmt.Errorf("no workload serves %q in namespace %s", q.Get("service"), namespace))
			return
		}
	}
	httpx.JSON(w, d)
}
