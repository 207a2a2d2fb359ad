package api_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/api"
)

// corpus is where the sample files of Istio 1.0.6 lie beside the repository.
const corpus = "../../shared/corpora/istio-1.0.6"

// Every file of the corpus applies, or is refused by these problems.
var refused = map[string][]string{}

func TestCorpus(t *testing.T) {
	if _, err := os.Stat(corpus); err != nil {
		t.Skipf("the corpus of Istio 1.0.6 is not here: %v", err)
	}
	var files []string
	for _, pattern := range []string{"networking/*.yaml", "platform/consul/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(corpus, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) < 20 {
		t.Fatalf("found %d files in the corpus, want at least 20", len(files))
	}
	for _, file := range files {
		name, err := filepath.Rel(corpus, file)
		if err != nil {
			t.Fatal(err)
		}
		if name == "platform/consul/bookinfo.yaml" { // a compose file
			continue
		}
		t.Run(name, func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			docs, err := api.DecodeYAML(api.Kinds(), filepath.Base(file), f)
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if diff := cmp.Diff(refused[name], got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if len(docs)+len(got) == 0 {
				t.Error("no object and no problem")
			}
		})
	}
}
