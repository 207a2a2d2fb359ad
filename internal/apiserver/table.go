package apiserver

import (
	"encoding/json"
	"net/http"

	"k8s.io/apimachinery/pkg/api/meta/table"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

func (s *Server) writeTable(w http.ResponseWriter, r *http.Request, code int, res *resource, meta metav1.ListMeta, items []*unstructured.Unstructured) error {
	t, err := makeTable(r, res, meta, items)
	if err != nil {
		return err
	}
	writeJSON(w, code, t)
	return nil
}

// makeTable renders items as the server-side Table that kubectl prints.
func makeTable(r *http.Request, res *resource, meta metav1.ListMeta, items []*unstructured.Unstructured) (*metav1.Table, error) {
	t := &metav1.Table{
		TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ListMeta: meta,
		ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: "The object's name"}},
		Rows:              []metav1.TableRow{},
	}
	for _, c := range res.columns {
		t.ColumnDefinitions = append(t.ColumnDefinitions, metav1.TableColumnDefinition{Name: c.name, Type: "string", Description: c.description})
	}
	aged := res.api != nil // what is derived has no time of its own
	if aged {
		t.ColumnDefinitions = append(t.ColumnDefinitions, metav1.TableColumnDefinition{Name: "Age", Type: "date", Description: "The time since the object was made"})
	}
	for _, o := range items {
		raw, err := rowObject(r.URL.Query().Get("includeObject"), o)
		if err != nil {
			return nil, err
		}
		row := metav1.TableRow{Cells: []any{o.GetName()}, Object: runtime.RawExtension{Raw: raw}}
		for _, c := range res.columns {
			row.Cells = append(row.Cells, c.cell(o))
		}
		if aged {
			row.Cells = append(row.Cells, table.ConvertToHumanReadableDateType(o.GetCreationTimestamp()))
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

// rowObject is what stands behind a row: the object's metadata, unless the request says None or Object.
func rowObject(include string, o *unstructured.Unstructured) ([]byte, error) {
	switch include {
	case string(metav1.IncludeNone):
		return nil, nil
	case string(metav1.IncludeObject):
		return o.MarshalJSON()
	}
	return json.Marshal(map[string]any{
		"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": o.Object["metadata"],
	})
}
