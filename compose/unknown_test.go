package compose

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUnknown: fields that only a newer Compose knows are told, and stay as they are.
func TestUnknown(t *testing.T) {
	const left = ": not known to this meshctl; left to Compose, which decides"
	for _, tc := range []struct {
		name  string
		files map[string]string // compose.yaml is the first
		out   string            // of --full
		told  []string
		// moved are parts of the override: what is within a field that moves goes with it. Nothing else of what is unknown
		// is in it.
		moved []string
		// full are parts of the flattened file, refused those of the reason why there is none.
		full, refused []string
		fails         []string // parts of the error of inject
	}{
		{
			name:  "of a service, a typo",
			files: map[string]string{"compose.yaml": "services:\n  web:\n    image: x\n    prots: ['80:80']\n"},
			told:  []string{"compose.yaml:4: services.web.prots" + left + "; did you mean ports?"},
			full:  []string{"    prots:\n      - \"80:80\"\n"},
		}, {
			name: "in mappings",
			files: map[string]string{"compose.yaml": `services:
  web:
    image: x
    build:
      context: .
      futureb: {c: "${V:-d}"}
    deploy:
      resources:
        limits: {futurel: 1}
    healthcheck: {test: [CMD, x], futureh: true}
    depends_on:
      db: {condition: service_started, futured: 1s}
  db: {image: x}
networks:
  n: {futuren: [a]}
volumes:
  v: {futurev: ~}
futures:
  a: {b: c}
`},
			told: []string{"compose.yaml:15: networks.n.futuren" + left, "compose.yaml:6: services.web.build.futureb" + left, "compose.yaml:9: services.web.deploy.resources.limits.futurel" + left,
				"compose.yaml:10: services.web.healthcheck.futureh" + left, "compose.yaml:12: services.web.depends_on.db.futured" + left,
				"compose.yaml:17: volumes.v.futurev" + left, "compose.yaml:18: futures" + left},
			full: []string{"futureb:\n        c: \"${V:-d}\"\n", "futurel: 1\n", "futureh: true\n", "futured: \"1s\"\n", "futuren:\n", "futurev: null\n", "futures:\n  a:\n    b: \"c\"\n"},
		}, {
			name: "within what moves",
			files: map[string]string{"compose.yaml": `services:
  web:
    image: x
    networks:
      n: {futuren: "${A:-b}"}
    ports:
    - {target: 80, futurep: [1]}
networks: {n: {}}
`},
			told:  []string{"compose.yaml:5: services.web.networks.n.futuren" + left, "compose.yaml:7: services.web.ports.0.futurep" + left},
			moved: []string{"futuren: \"${A:-b}\"\n", "futurep:\n"},
			full:  []string{"futuren: \"${A:-b}\"\n", "futurep:\n"},
		}, {
			name:  "through an anchor, once for its line",
			files: map[string]string{"compose.yaml": "x-common: &common\n  future: 1\nservices:\n  a: {<<: *common, image: x}\n  b:\n    <<: [*common]\n    image: x\n"},
			told:  []string{"compose.yaml:2: services.a.future" + left},
			full:  []string{"future: 1\n"},
		}, {
			name:    "in two files",
			files:   map[string]string{"compose.yaml": "services:\n  web: {image: x, future: [a]}\n", "compose.override.yml": "services:\n  web: {future: [b]}\n"},
			told:    []string{"compose.yaml:2: services.web.future" + left, "compose.override.yml:2: services.web.future" + left},
			refused: []string{"compose.override.yml:2: services.web.future: ", "compose.yaml:2 may have it too"},
		}, {
			name:  "taken away by the second file",
			files: map[string]string{"compose.yaml": "services:\n  web: {image: x, future: [a]}\n", "compose.override.yml": "services:\n  web: {future: !reset null}\n"},
		}, {
			name: "extended and included",
			files: map[string]string{
				"compose.yaml": "include: [sub/inc.yaml]\nservices:\n  web: {extends: {file: base.yaml, service: base}}\n",
				"base.yaml":    "services:\n  base: {image: x, future: 1}\n  unused: {image: x, other: 1}\n",
				"sub/inc.yaml": "include: [deep.yaml]\nservices:\n  db: {image: x, inner: 1}\n", "sub/deep.yaml": "futures: {a: b}\nservices: {}\n",
			},
			told: []string{"base.yaml:2: services.base.future" + left, "sub/deep.yaml:1: futures" + left, "sub/inc.yaml:3: services.db.inner" + left},
			// inject has no place in the project for what an included file has of its own
			refused: []string{"it comes by include or extends"},
		}, {
			name:    "extended in the same file",
			files:   map[string]string{"compose.yaml": "services:\n  base: {image: x, future: [1]}\n  web:\n    extends: base\n    future: [2]\n"},
			told:    []string{"compose.yaml:2: services.base.future" + left, "compose.yaml:5: services.web.future" + left},
			refused: []string{"compose.yaml:5: services.web.future: ", "how they merge is not known"},
		}, {
			name: "of what Compose resolves",
			files: map[string]string{
				"compose.yaml": "include:\n- path: inc.yaml\n  future: 1\nservices:\n  base: {image: x}\n  web:\n    extends: {service: base, future: 1}\n",
				"inc.yaml":     "services: {db: {image: x}}\n",
			},
			told:    []string{"compose.yaml:3: include.0.future" + left, "compose.yaml:7: services.web.extends.future" + left},
			refused: []string{"compose.yaml:3: include.0.future: ", "there is no include and no extends in it"},
		}, {
			name:    "written into another directory",
			out:     "sub/full.yaml",
			files:   map[string]string{"compose.yaml": "services:\n  web: {image: x, future: ./a}\n", "sub/x": ""},
			told:    []string{"compose.yaml:2: services.web.future" + left},
			refused: []string{"compose.yaml:2: services.web.future: ", "it may hold a path"},
		}, {
			name:  "of a service with replicas",
			files: map[string]string{"compose.yaml": "services:\n  web: {image: x, scale: 2, future: {a: b}}\n"},
			told:  []string{"compose.yaml:2: services.web.future" + left},
			full:  []string{"  web-2:\n", "    future:\n      a: \"b\"\n"},
		}, {
			name:    "of a service with replicas, in the second file",
			files:   map[string]string{"compose.yaml": "services:\n  web: {image: x, scale: 2}\n", "compose.override.yml": "services:\n  web: {future: {a: \"${B:-c}\"}}\n"},
			told:    []string{"compose.override.yml:2: services.web.future" + left},
			moved:   []string{"future: !override\n      a: \"${B:-c}\"\n"}, // a replica extends the first file's
			full:    []string{"a: \"${B:-c}\"\n"},
			refused: nil,
		}, {
			name:  "in ports that a replica has in part",
			files: map[string]string{"compose.yaml": "services:\n  web: {image: x, scale: 2, ports: [{target: 80, future: 1}, \"81:81\"]}\n"},
			fails: []string{"compose.yaml:", "services.web-2-mesh-sandbox.ports.0.future: want 1"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := project(t, tc.files)
			s, err := Load(context.Background(), Options{WorkingDir: dir, Env: testEnv})
			if err != nil {
				t.Fatal(err)
			}
			r, err := Inject(context.Background(), s, testConfig)
			if tc.fails != nil {
				says(t, err, tc.fails)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var told []string
			for _, u := range r.Unknown {
				told = append(told, u.String())
			}
			slices.Sort(told)
			slices.Sort(tc.told)
			if diff := cmp.Diff(tc.told, told); diff != "" {
				t.Errorf("what is told differs (-want +got):\n%s", diff)
			}
			for _, part := range tc.moved {
				if !strings.Contains(string(r.Output), part) {
					t.Errorf("the override has no %q:\n%s", part, r.Output)
				}
			}
			if _, body, _ := strings.Cut(string(r.Output), "\n"+bodyStart); tc.moved == nil && (strings.Contains(body, "future") || strings.Contains(body, "prots")) {
				t.Errorf("the override speaks of what is unknown:\n%s", body)
			}
			full := testConfig
			full.Full, full.Out = true, tc.out
			r, err = Inject(context.Background(), s, full)
			if tc.refused != nil {
				says(t, err, tc.refused)
				return
			}
			if err != nil {
				t.Fatalf("--full: %v", err)
			}
			for _, part := range tc.full {
				if !strings.Contains(string(r.Output), part) {
					t.Errorf("the flattened file has no %q:\n%s", part, r.Output)
				}
			}
			for _, name := range slices.Sorted(maps.Keys(tc.files)) {
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != tc.files[name] {
					t.Errorf("%s was changed", name)
				}
			}
		})
	}
}

func says(t *testing.T, err error, parts []string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"ports", "ports", 0}, {"prots", "ports", 1}, {"port", "ports", 1}, {"volmues", "volumes", 1}, {"", "abc", 3}, {"imge", "image", 1}, {"abc", "xyz", 3}} {
		if got := editDistance(tc.a, tc.b); got != tc.want {
			t.Errorf("%s and %s: %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}
