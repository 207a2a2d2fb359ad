package api

import (
	"regexp"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Path is the way to a field: string keys and int indexes, outermost first.
type Path []any

// At is p with more elements; p is not changed.
func (p Path) At(elems ...any) Path {
	return append(p[:len(p):len(p)], elems...)
}

var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// String is p as people write it: spec.http[0].match[1].headers[end-user].
func (p Path) String() string {
	var b strings.Builder
	for _, e := range p {
		switch e := e.(type) {
		case int:
			b.WriteString("[" + strconv.Itoa(e) + "]")
		case string:
			switch {
			case !plainKey.MatchString(e):
				b.WriteString("[" + e + "]")
			case b.Len() == 0:
				b.WriteString(e)
			default:
				b.WriteString("." + e)
			}
		}
	}
	return b.String()
}

// Problem is one thing that is wrong with an object.
type Problem struct { //nolint:errname // it is what people are told, and an error besides
	// Cause is the machine's word for it, as it stands in a Kubernetes Status.
	Cause  metav1.CauseType
	Path   Path
	Detail string
	// Code is the number of Istio's own message about it, where there is one more special than IST0106
	// (https://istio.io/latest/docs/reference/config/analysis/).
	Code string
}

// Error is "<path>: <detail>".
func (p Problem) Error() string {
	if len(p.Path) == 0 {
		return p.Detail
	}
	return p.Path.String() + ": " + p.Detail
}

// Problems is everything that is wrong with an object.
type Problems []Problem //nolint:errname // as Problem

// Error joins the problems with "; ".
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "; ")
}

// Err is ps as an error, nil if there is none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

func (ps *Problems) add(cause metav1.CauseType, path Path, detail string) {
	*ps = append(*ps, Problem{Cause: cause, Path: path, Detail: detail})
}

// invalidRegexp is the code of an expression that is none.
const invalidRegexp = "IST0122"

func (ps *Problems) regexp(path Path, detail string) {
	*ps = append(*ps, Problem{Cause: metav1.CauseTypeFieldValueInvalid, Path: path, Detail: detail, Code: invalidRegexp})
}

func (ps *Problems) invalid(path Path, detail string) {
	ps.add(metav1.CauseTypeFieldValueInvalid, path, detail)
}

func (ps *Problems) required(path Path, detail string) {
	ps.add(metav1.CauseTypeFieldValueRequired, path, detail)
}

func (ps *Problems) unsupported(path Path, what string) {
	if what != "" {
		what += " "
	}
	ps.add(metav1.CauseTypeFieldValueNotSupported, path, what+"is not supported yet")
}
