package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/composure-mesh/composure/api"
)

// maxPatchOperations bounds a JSON patch, as Kubernetes does.
const maxPatchOperations = 10000

func (r *resource) groupKind() schema.GroupKind {
	return schema.GroupKind{Group: r.gr.Group, Kind: r.kind}
}

// patch changes an object by a JSON merge patch (RFC 7396), a JSON patch (RFC 6902), or a server-side apply. There are
// no strategic merge patches, as for custom resources in Kubernetes, but for the kinds of Kubernetes' own group: those
// hold no lists, so that a strategic merge patch is a merge patch.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, res *resource, version string) error {
	wr, err := s.newWrite(r, res, version)
	if err != nil {
		return err
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		media = ""
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	patch := types.PatchType(media)
	if patch == types.StrategicMergePatchType && res.gr.Group == "" {
		patch = types.MergePatchType
	}
	switch patch {
	case types.MergePatchType:
		return wr.patchJSON(w, r, func(doc []byte) ([]byte, error) { return jsonpatch.MergePatch(doc, raw) })
	case types.JSONPatchType:
		operations, err := jsonpatch.DecodePatch(raw)
		if err != nil {
			return apierrors.NewBadRequest("JSON patch: " + err.Error())
		}
		if len(operations) > maxPatchOperations {
			return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("JSON patch: want at most %d operations", maxPatchOperations))
		}
		return wr.patchJSON(w, r, operations.Apply)
	case types.ApplyYAMLPatchType:
		return wr.patchApply(w, r, raw)
	}
	return unsupportedMedia(fmt.Sprintf("%s, %s or %s", types.MergePatchType, types.JSONPatchType, types.ApplyYAMLPatchType))
}

func (wr *write) patchJSON(w http.ResponseWriter, r *http.Request, apply func([]byte) ([]byte, error)) error {
	return wr.apply(w, r, http.StatusOK, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current == nil {
			return nil, apierrors.NewNotFound(wr.gr, wr.key.Name)
		}
		doc, err := wr.as(current, wr.version).MarshalJSON()
		if err != nil {
			return nil, err
		}
		patched, err := apply(doc)
		if err != nil {
			return nil, patchError(wr, err)
		}
		content, err := api.ParseJSON(patched)
		if err != nil {
			return nil, apierrors.NewBadRequest("the patched object: " + err.Error())
		}
		return wr.next(current, &unstructured.Unstructured{Object: content}, wr.trackUpdate)
	})
}

func patchError(wr *write, err error) error {
	if errors.Is(err, jsonpatch.ErrTestFailed) {
		return status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, fmt.Sprintf("%s %q: %v", wr.groupKind(), wr.key.Name, err), nil)
	}
	return apierrors.NewBadRequest("the patch does not apply: " + err.Error())
}

// patchApply is a server-side apply: it makes the object if there is none, and takes from it what the same manager
// applied before and no longer does.
func (wr *write) patchApply(w http.ResponseWriter, r *http.Request, raw []byte) error {
	force := r.URL.Query().Get("force") == "true"
	if r.URL.Query().Get("fieldManager") == "" {
		return apierrors.NewBadRequest("fieldManager: want one for a server-side apply")
	}
	asJSON, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return apierrors.NewBadRequest("apply: " + err.Error())
	}
	content, err := api.ParseJSON(asJSON)
	if err != nil {
		return apierrors.NewBadRequest("apply: " + err.Error())
	}
	applied := &unstructured.Unstructured{Object: content}
	if applied.GetNamespace() == "" {
		applied.SetNamespace(wr.key.Namespace)
	}
	code := http.StatusOK
	if wr.store.Get(wr.key) == nil {
		code = http.StatusCreated
	}
	return wr.apply(w, r, code, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		merged, err := wr.mergeApplied(current, applied, force)
		if err != nil {
			return nil, err
		}
		return wr.next(current, merged, keepManagers)
	})
}

func unmarshal(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("malformed JSON: %w", err)
	}
	return nil
}
