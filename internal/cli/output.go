package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is the value of --output.
type format string

func addOutput(c *cobra.Command, f *format, allowed ...string) {
	c.Flags().StringVarP((*string)(f), "output", "o", allowed[0], "one of "+strings.Join(allowed, ", "))
	c.PreRunE = func(*cobra.Command, []string) error {
		if slices.Contains(allowed, string(*f)) {
			return nil
		}
		return withCode(exitUsage, fmt.Errorf("--output is %q, want one of %s", *f, strings.Join(allowed, ", ")))
	}
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
}

// encode writes v as YAML or JSON.
func encode(w io.Writer, f format, v any) error {
	if f == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// table writes rows in columns, as kubectl does.
func table(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, r := range rows {
		for i := range r {
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}
