package compose

import (
	"strings"
	"testing"
)

// TestDemand: what is left out of the mesh by itself, and whether the label brings it in or is an error, as
// docs/compose.md says.
func TestDemand(t *testing.T) {
	for _, tc := range []struct {
		fields string
		reason string // part of it
		in     bool   // with the label
	}{
		{fields: "network_mode: host", reason: "host"},
		{fields: "network_mode: none", reason: "no network"},
		{fields: "network_mode: bridge", reason: "bridge"},
		{fields: "network_mode: default", reason: "default"},
		{fields: `network_mode: "container:elsewhere"`, reason: "elsewhere"},
		{fields: "provider: {type: model}", reason: "provider"},
		{fields: `credential_spec: {file: "spec.json"}`, reason: "Windows"},
		{fields: "isolation: process", reason: "Windows"},
		{fields: "platform: windows/amd64", reason: "Windows"},
		{fields: `user: "1337"`, reason: "1337"},
		{fields: `user: "1337:0"`, reason: "1337"},
		{fields: `user: "0:1337"`, reason: "1337"},
		{fields: "privileged: true", reason: "privileged", in: true},
		{fields: "cap_add: [NET_ADMIN]", reason: "NET_ADMIN", in: true},
		{fields: "cap_add: [all]", reason: "with all", in: true},
		{fields: "runtime: runsc", reason: "runsc", in: true},
		{fields: "runtime: kata-qemu", reason: "kata-qemu", in: true},
		{fields: "runtime: io.containerd.wasmedge.v1", reason: "wasmedge", in: true},
	} {
		t.Run(tc.fields, func(t *testing.T) {
			plan := func(label string) (*Plan, error) {
				dir := project(t, map[string]string{"compose.yaml": "services:\n  other: {image: x}\n  web:\n    image: x\n    " + tc.fields + "\n" + label})
				s, err := Load(t.Context(), Options{WorkingDir: dir, Env: testEnv})
				if err != nil {
					t.Fatal(err)
				}
				return s.Plan(nil)
			}
			p, err := plan("")
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Warnings) != 1 || !p.Warnings[0].LeftOut() || !strings.Contains(p.Warnings[0].String(), tc.reason) || p.workload("web") != nil {
				t.Errorf("warnings %v, want that web is left out, for %s", p.Warnings, tc.reason)
			}
			p, err = plan("    labels: {composure.inject: \"true\"}\n")
			switch {
			case !tc.in:
				if err == nil || !strings.Contains(err.Error(), "compose.yaml:5: services.web.") || !strings.Contains(err.Error(), "remove one of the two") {
					t.Errorf("with the label: error %v, want one that names the line and both fields", err)
				}
			case err != nil:
				t.Errorf("with the label: %v", err)
			case p.workload("web") == nil:
				t.Error("with the label it is not in the mesh")
			}
		})
	}
}
