package mixer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/expression"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// operation changes the fields of one name.
type operation struct {
	lower  string
	field  http1.Field // without a value
	add    bool        // beside those that are there
	values []*expression.Program
}

func operations(list []snapshot.MixerHeader) ([]operation, error) {
	var out []operation
	var errs []error
	for i := range list {
		s := &list[i]
		op := operation{lower: strings.ToLower(s.Name), field: http1.NewField(s.Name, ""), add: s.Operation == "APPEND"}
		op.field.Value = nil
		for j := range s.Values {
			p, err := expression.Compile(&s.Values[j])
			if err != nil {
				errs = append(errs, fmt.Errorf("[%d].values[%d]: %w", i, j, err))
			}
			op.values = append(op.values, p)
		}
		out = append(out, op)
	}
	return out, errors.Join(errs...)
}

// amend changes the header of a request that was let pass, and says what is to be changed in its response, by the rules
// that hold. Values are all evaluated before anything is changed.
func (r *Rules) amend(s *scratch, x *filter.Exchange) {
	later := len(x.Later)
	for _, m := range s.matched {
		for i := range m.request {
			m.request[i].evaluate(s, x)
		}
	}
	end := len(x.Later)
	for _, m := range s.matched {
		for i := range m.response {
			m.response[i].evaluate(s, x)
		}
	}
	for i := later; i < end; i++ {
		x.Request.Header = x.Later[i].Apply(x.Request.Header)
	}
	x.Later = append(x.Later[:later], x.Later[end:]...)
}

// evaluate appends the changes to x.Later. An operation whose value can't be had is left out.
func (op *operation) evaluate(s *scratch, x *filter.Exchange) {
	if len(op.values) == 0 {
		x.Later = append(x.Later, filter.Change{Lower: op.lower})
		return
	}
	first := len(x.Later)
	for i, p := range op.values {
		v, err := p.Eval(&s.bag)
		if err != nil || strings.ContainsAny(v.Str, "\r\n\x00") {
			x.Later = x.Later[:first]
			return
		}
		start := len(x.Text)
		x.Text = append(x.Text, v.Str...)
		c := filter.Change{Lower: op.lower, Add: op.add || i > 0, Field: op.field}
		c.Field.Value = x.Text[start:len(x.Text):len(x.Text)]
		x.Later = append(x.Later, c)
	}
}
