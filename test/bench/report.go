package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// row is one comparison.
type row struct {
	Case     string  `json:"case"`
	Metric   string  `json:"metric"`
	Ours     float64 `json:"ours"`
	Theirs   float64 `json:"theirs"`
	Opponent string  `json:"opponent"`
	Ratio    float64 `json:"ratio"` // ours / theirs
}

func (b *bench) print(w io.Writer) {
	fmt.Fprintf(w, "%-14s %-24s %12s %12s %7s  %s\n", "case", "metric", "ours", "theirs", "ratio", "opponent")
	for _, r := range b.rows {
		fmt.Fprintf(w, "%-14s %-24s %12s %12s %7.2f  %s\n", r.Case, r.Metric, number(r.Ours), number(r.Theirs), r.Ratio, r.Opponent)
	}
}

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func (b *bench) writeJSON(file string) error {
	var out bytes.Buffer
	out.WriteString("[\n")
	for i, r := range b.rows {
		line, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("%s %s: %w", r.Case, r.Metric, err)
		}
		if i > 0 {
			out.WriteString(",\n")
		}
		out.WriteString("  ")
		out.Write(line)
	}
	out.WriteString("\n]\n")
	return os.WriteFile(file, out.Bytes(), 0o644) //nolint:gosec // for everybody to read
}

// Between these lines of the document stands the table.
const (
	tableBegin = "<!-- results: begin -->\n"
	tableEnd   = "<!-- results: end -->\n"
)

func (b *bench) writeDoc(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, found := strings.Cut(string(data), tableBegin)
	_, tail, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		return fmt.Errorf("%s: no place for the table between %q and %q", file, tableBegin, tableEnd)
	}
	var out strings.Builder
	out.WriteString(head + tableBegin)
	for _, c := range b.ran {
		fmt.Fprintf(&out, "- **%s**: %s\n", c.name, c.about)
	}
	fmt.Fprintf(&out, "\n%s\n\n| Case | Measure | Ours | Theirs | Ratio | Opponent |\n|---|---|---:|---:|---:|---|\n", b.machine())
	last := ""
	for _, r := range b.rows {
		name := ""
		if r.Case != last {
			name, last = r.Case, r.Case
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %.2f | %s |\n", name, r.Metric, number(r.Ours), number(r.Theirs), r.Ratio, r.Opponent)
	}
	out.WriteString(tableEnd + tail)
	return os.WriteFile(file, []byte(out.String()), 0o644) //nolint:gosec // for everybody to read
}

// machine says what was measured on and with.
func (b *bench) machine() string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores; %s; %s; %s. %d rounds of %s a side; 3 of 1s for bodies, numbers of connections, tables and the log.", model, runtime.NumCPU(), runtime.Version(),
		b.version("nginx", "-v"), b.version("haproxy", "-v"), b.rounds, b.duration)
}

func (b *bench) version(program, flag string) string {
	out, err := exec.CommandContext(b.ctx, program, flag).CombinedOutput()
	if err != nil {
		return program
	}
	line, _, _ := strings.Cut(string(out), "\n")
	line = strings.TrimPrefix(line, "nginx version: ")
	if fields := strings.Fields(line); len(fields) > 2 {
		line = strings.Join(fields[:3], " ")
	}
	return line
}
