package apiserver

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/composure-mesh/composure/api"
)

// write is one request that changes an object.
type write struct {
	*resource
	server  *Server
	version string
	key     Key
	dryRun  bool
	manager string      // of the fields that it sets (managedFields)
	decoded *api.Object // what the request leads to
}

func (s *Server) newWrite(r *http.Request, res *resource, version string) (*write, error) {
	query := r.URL.Query()
	wr := &write{resource: res, server: s, version: version, key: Key{res.gr, r.PathValue("namespace"), r.PathValue("name")}, manager: managerOf(r)}
	for _, v := range query["dryRun"] {
		if v != metav1.DryRunAll {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("dryRun: want %s, got %q", metav1.DryRunAll, v))
		}
		wr.dryRun = true
	}
	return wr, nil
}

// readBody reads a request's body, within the limit on an object.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxBytes))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	return raw, nil
}

func (s *Server) readObject(w http.ResponseWriter, r *http.Request, res *resource) (*unstructured.Unstructured, error) {
	parse := api.ParseJSON
	switch media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); {
	case r.Header.Get("Content-Type") == "", err == nil && media == "application/json":
	case err == nil && media == protobufMedia && res.gr.Group == "":
		parse = decodeSecret
	default:
		return nil, unsupportedMedia("application/json")
	}
	raw, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	content, err := parse(raw)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &unstructured.Unstructured{Object: content}, nil
}

func unsupportedMedia(want string) error {
	return status(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType, "the request's content type is not supported, want "+want, nil)
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, res *resource, version string) error {
	wr, err := s.newWrite(r, res, version)
	if err != nil {
		return err
	}
	o, err := s.readObject(w, r, res)
	if err != nil {
		return err
	}
	wr.key.Name = nameOf(o.Object)
	return wr.apply(w, r, http.StatusCreated, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current != nil {
			return nil, apierrors.NewAlreadyExists(res.gr, wr.key.Name)
		}
		return wr.next(nil, o, wr.trackUpdate)
	})
}

func (s *Server) update(w http.ResponseWriter, r *http.Request, res *resource, version string) error {
	wr, err := s.newWrite(r, res, version)
	if err != nil {
		return err
	}
	o, err := s.readObject(w, r, res)
	if err != nil {
		return err
	}
	return wr.apply(w, r, http.StatusOK, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current == nil {
			return nil, apierrors.NewNotFound(res.gr, wr.key.Name)
		}
		return wr.next(current, o, wr.trackUpdate)
	})
}

// apply runs change and answers with the object that it led to.
func (wr *write) apply(w http.ResponseWriter, r *http.Request, code int, change Change) error {
	o, err := wr.store.Apply(wr.key, wr.dryRun, change)
	if err != nil {
		return err
	}
	if !wr.dryRun {
		wr.server.cfg.Log.Info("object changed", "kind", wr.kind, "namespace", wr.key.Namespace, "name", wr.key.Name, "by", wr.manager, "resourceVersion", o.GetResourceVersion())
	}
	if wr.server.cfg.Warn != nil {
		warn(w, wr.server.cfg.Warn(wr.decoded))
	}
	return wr.server.writeObject(w, r, code, wr.resource, wr.as(o, wr.version))
}

// next is what becomes of current, nil if there is none, by a request for o: validated, with the metadata that the
// server keeps, and the fields' managers as track finds them.
func (wr *write) next(current, o *unstructured.Unstructured, track tracker) (*unstructured.Unstructured, error) {
	content := o.DeepCopy()
	decoded, err := api.Decode(wr.server.cfg.Kinds, content.Object)
	if err == nil && decoded.Kind != wr.api {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the request is for %s, the object is a %s", wr.kind, decoded.Kind.Kind))
	}
	if err == nil && wr.server.cfg.Validate != nil {
		err = wr.server.cfg.Validate(decoded).Err()
	}
	if err != nil {
		return nil, invalid(wr.groupKind(), nameOf(o.Object), err)
	}
	if err := wr.checkMeta(current, decoded); err != nil {
		return nil, err
	}
	if err := wr.checkProtected(); err != nil {
		return nil, err
	}
	content.SetAPIVersion(wr.apiVersion(wr.version))
	if current == nil {
		content.SetUID(uuid.NewUUID())
		content.SetCreationTimestamp(metav1.NewTime(time.Now()))
		content.SetGeneration(1)
	} else {
		content.SetUID(current.GetUID())
		content.SetCreationTimestamp(current.GetCreationTimestamp())
		content.SetGeneration(current.GetGeneration())
		if !reflect.DeepEqual(current.Object["spec"], content.Object["spec"]) {
			content.SetGeneration(current.GetGeneration() + 1)
		}
	}
	content.SetResourceVersion("")
	content.SetSelfLink("")
	if content, err = track(current, content); err != nil {
		return nil, err
	}
	content = wr.as(content, wr.versions[0])
	if current != nil && current.Object["status"] != nil {
		content.Object["status"] = current.Object["status"] // it is the mesh's to write
	} else {
		delete(content.Object, "status")
	}
	wr.decoded = decoded
	if current != nil && sameContent(current, content) {
		return current, nil
	}
	return content, nil
}

// checkProtected refuses changes of what is built in.
func (wr *write) checkProtected() error {
	if p := wr.server.cfg.Protected; p != nil && p(wr.key) {
		return apierrors.NewForbidden(wr.gr, wr.key.Name, errBuiltIn)
	}
	return nil
}

var errBuiltIn = errors.New("it is built in, and says what the mesh does by itself: give yours another name")

// checkMeta holds an object against the address of the request and against what is stored.
func (wr *write) checkMeta(current *unstructured.Unstructured, o *api.Object) error {
	if o.Meta.Name != wr.key.Name {
		return apierrors.NewBadRequest(fmt.Sprintf("the object's name %q is not that of the request, %q", o.Meta.Name, wr.key.Name))
	}
	if o.Meta.Namespace != wr.key.Namespace {
		return apierrors.NewBadRequest(fmt.Sprintf("the object's namespace %q is not that of the request, %q", o.Meta.Namespace, wr.key.Namespace))
	}
	if current == nil {
		if o.Meta.ResourceVersion != "" {
			return apierrors.NewBadRequest("metadata.resourceVersion: want none on an object that does not exist yet")
		}
		return nil
	}
	if v := o.Meta.ResourceVersion; v != "" && v != current.GetResourceVersion() {
		return apierrors.NewConflict(wr.gr, wr.key.Name, errors.New("the object has been modified: apply your changes to the latest version"))
	}
	if uid := o.Meta.UID; uid != "" && uid != current.GetUID() {
		return apierrors.NewConflict(wr.gr, wr.key.Name, fmt.Errorf("metadata.uid: the object is another one now, its uid is %s", current.GetUID()))
	}
	return nil
}

// delete removes an object and answers with a Status that names it.
func (s *Server) delete(w http.ResponseWriter, r *http.Request, res *resource, version string) error {
	wr, err := s.newWrite(r, res, version)
	if err != nil {
		return err
	}
	options, err := deleteOptions(w, r)
	if err != nil {
		return err
	}
	wr.dryRun = wr.dryRun || len(options.DryRun) > 0
	var gone *unstructured.Unstructured
	_, err = wr.store.Apply(wr.key, wr.dryRun, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current == nil {
			return nil, apierrors.NewNotFound(res.gr, wr.key.Name)
		}
		if err := wr.checkProtected(); err != nil {
			return nil, err
		}
		gone = current
		return nil, wr.checkPreconditions(current, options.Preconditions)
	})
	if err != nil {
		return err
	}
	if !wr.dryRun {
		s.cfg.Log.Info("object deleted", "kind", wr.kind, "namespace", wr.key.Namespace, "name", wr.key.Name, "by", wr.manager)
	}
	writeJSON(w, http.StatusOK, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: wr.key.Name, Group: res.gr.Group, Kind: res.gr.Resource, UID: gone.GetUID()},
	})
	return nil
}

func deleteOptions(w http.ResponseWriter, r *http.Request) (metav1.DeleteOptions, error) {
	var options metav1.DeleteOptions
	raw, err := readBody(w, r)
	if err != nil || len(raw) == 0 {
		return options, err
	}
	if err := unmarshal(raw, &options); err != nil {
		return options, apierrors.NewBadRequest("DeleteOptions: " + err.Error())
	}
	return options, nil
}

func (wr *write) checkPreconditions(current *unstructured.Unstructured, p *metav1.Preconditions) error {
	switch {
	case p == nil:
	case p.UID != nil && *p.UID != current.GetUID():
		return apierrors.NewConflict(wr.gr, wr.key.Name, fmt.Errorf("preconditions.uid: the object's is %s", current.GetUID()))
	case p.ResourceVersion != nil && *p.ResourceVersion != current.GetResourceVersion():
		return apierrors.NewConflict(wr.gr, wr.key.Name, fmt.Errorf("preconditions.resourceVersion: the object's is %s", current.GetResourceVersion()))
	}
	return nil
}

// sameContent compares two objects but for their resourceVersion.
func sameContent(a, b *unstructured.Unstructured) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	a.SetResourceVersion("")
	b.SetResourceVersion("")
	return reflect.DeepEqual(a.Object, b.Object)
}

func nameOf(content map[string]any) string {
	name, _, _ := unstructured.NestedString(content, "metadata", "name") // what is no string is reported by Decode
	return name
}
