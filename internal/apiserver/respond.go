package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/composure-mesh/composure/api"
)

// format is the form of an answer that a client asked for.
type format int

const (
	formatObject format = iota
	formatTable
	formatNone
)

// negotiate is the first form of the Accept header that there is.
func negotiate(r *http.Request) format {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if accept == "" {
		return formatObject
	}
	for clause := range strings.SplitSeq(accept, ",") {
		media, params, err := mime.ParseMediaType(clause)
		if err != nil {
			continue
		}
		switch media {
		case "application/json", "application/*", "*/*":
		default:
			continue
		}
		switch {
		case params["as"] == "":
			return formatObject
		case params["as"] == "Table" && params["g"] == metav1.GroupName && params["v"] == "v1":
			return formatTable
		}
	}
	return formatNone
}

func errNotAcceptable() error {
	return status(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only application/json is served, plain or as=Table;v=v1;g=meta.k8s.io", nil)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client went away; there is nobody to tell
}

func status(code int32, reason metav1.StatusReason, message string, details *metav1.StatusDetails) *apierrors.StatusError {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: message, Details: details,
	}}
}

// statusOf is err as the Status that a client is told.
func statusOf(err error) metav1.Status {
	var known apierrors.APIStatus
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &known):
	case errors.Is(err, ErrExpired), errors.Is(err, ErrSlow):
		known = apierrors.NewResourceExpired(err.Error())
	case errors.Is(err, ErrClosed):
		known = apierrors.NewServiceUnavailable(err.Error())
	case errors.As(err, &tooLarge):
		known = apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("want at most %d bytes", tooLarge.Limit))
	default:
		known = apierrors.NewInternalError(err)
	}
	st := known.Status()
	st.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	return st
}

func writeError(w http.ResponseWriter, err error) {
	st := statusOf(err)
	writeJSON(w, int(st.Code), st)
}

func notFoundPath(path string) error {
	return status(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("this server has nothing at %s", path), nil)
}

func methodNotAllowed(_ http.ResponseWriter, r *http.Request, res *resource, _ string) error {
	return apierrors.NewMethodNotSupported(res.gr, strings.ToLower(r.Method))
}

// invalid is the Status of an object that is at fault.
func invalid(kind schema.GroupKind, name string, err error) error {
	var ps api.Problems
	if !errors.As(err, &ps) {
		return apierrors.NewBadRequest(err.Error())
	}
	causes := make([]metav1.StatusCause, len(ps))
	for i, p := range ps {
		causes[i] = metav1.StatusCause{Type: p.Cause, Message: p.Detail, Field: p.Path.String()}
	}
	return status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid,
		fmt.Sprintf("%s %q is invalid: %s", kind, name, ps.Error()),
		&metav1.StatusDetails{Group: kind.Group, Kind: kind.Kind, Name: name, Causes: causes})
}

// warn adds a Warning header for each text (RFC 7234 section 5.5; kubectl and client-go show them).
func warn(w http.ResponseWriter, texts []string) {
	for _, text := range texts {
		if header, err := utilnet.NewWarningHeader(299, "-", text); err == nil {
			w.Header().Add("Warning", header)
		}
	}
}
