package compose

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bigProject has n services on ten networks.
func bigProject(n int) string {
	var yaml strings.Builder
	yaml.WriteString("services:\n")
	for i := range n {
		fmt.Fprintf(&yaml, `  svc%03[1]d:
    image: "registry/svc:${TAG:-1}"
    ports: ["%[2]d:8080"]
    networks: {net%[3]d: {aliases: [alias%[1]d]}}
    environment: {A: b, C: "${D:-e}"}
    healthcheck: {test: [CMD, "true"], interval: 10s}
    volumes: ["./data:/data"]
`, i, 10000+i, i%10)
		if i > 0 {
			fmt.Fprintf(&yaml, "    depends_on: [svc%03d]\n", i/4)
		}
	}
	yaml.WriteString("networks:\n")
	for i := range 10 {
		fmt.Fprintf(&yaml, "  net%d: {}\n", i)
	}
	return yaml.String()
}

// BenchmarkInject loads and injects a project of 500 services (design §7: at most 1 s, aim 0.2 s).
func BenchmarkInject(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(bigProject(500)), 0o644); err != nil {
		b.Fatal(err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as meshctl does
	before := cpuTime(b)
	for b.Loop() {
		s, err := Load(context.Background(), Options{WorkingDir: dir, Env: testEnv})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Inject(context.Background(), s, testConfig); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N), "cpu-s/op") // what a busy machine leaves to compare
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
