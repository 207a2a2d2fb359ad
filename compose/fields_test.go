package compose

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

// Where a field of a service goes.
const (
	toApp     = "app"     // it stays
	toSandbox = "sandbox" // it moves
	toAll     = "all"     // it stays, and is copied
	toNobody  = "nobody"  // the service is left out of the mesh for it
	ownWay    = "own"     // rewritten in a way that a test of its own is about, or resolved by Compose
)

// fields is every field of a service, with an example; empty where a golden file has it.
var fields = map[string][2]string{
	"annotations": {toApp, "{a: b}"}, "attach": {toApp, "false"}, "blkio_config": {toApp, "{weight: 300}"}, "build": {toApp, "."},
	"cap_add": {toApp, "[SYS_TIME]"}, "cap_drop": {toApp, "[ALL]"}, "cgroup": {toApp, "host"}, "cgroup_parent": {toApp, "x"},
	"command": {toApp, "[a]"}, "configs": {ownWay, ""}, "container_name": {toApp, "name"}, "cpu_count": {toApp, "1"},
	"cpu_percent": {toApp, "50"}, "cpu_period": {toApp, "1000"}, "cpu_quota": {toApp, "1000"}, "cpu_rt_period": {toApp, "1000"},
	"cpu_rt_runtime": {toApp, "1000"}, "cpu_shares": {toApp, "10"}, "cpus": {toApp, "1.5"}, "cpuset": {toApp, "\"0\""},
	"credential_spec": {toNobody, "{file: x}"}, "depends_on": {ownWay, ""}, "deploy": {toApp, "{resources: {limits: {pids: 9}}}"},
	"develop": {toApp, "{watch: [{path: ., action: sync, target: /x}]}"}, "device_cgroup_rules": {toApp, "[\"c 1:3 mr\"]"},
	"devices": {toApp, "[/dev/null]"}, "dns": {toSandbox, "[1.1.1.1]"}, "dns_opt": {toSandbox, "[\"ndots:1\"]"},
	"dns_search": {toSandbox, "[a.b]"}, "domainname": {toSandbox, "a.b"}, "entrypoint": {toApp, "[a]"}, "env_file": {toApp, "[{path: x, required: false}]"},
	"environment": {toApp, "{A: b}"}, "expose": {toSandbox, "[\"1\"]"}, "extends": {ownWay, ""}, "external_links": {toSandbox, "[x]"},
	"extra_hosts": {toSandbox, "[\"a:1.2.3.4\"]"}, "gpus": {toApp, "all"}, "group_add": {toApp, "[a]"}, "healthcheck": {toApp, "{test: [CMD, x]}"},
	"hostname": {toSandbox, "h"}, "image": {toApp, "other"}, "init": {toApp, "true"}, "ipc": {toApp, "host"}, "isolation": {toNobody, "hyperv"},
	"label_file": {toApp, ""}, "labels": {ownWay, ""}, "links": {ownWay, ""}, "logging": {toApp, "{driver: none}"},
	"mac_address": {toSandbox, "\"02:42:ac:11:65:43\""}, "mem_limit": {toApp, "64m"}, "mem_reservation": {toApp, "32m"},
	"mem_swappiness": {toApp, "10"}, "memswap_limit": {toApp, "128m"}, "models": {ownWay, ""}, "network_mode": {ownWay, ""},
	"name": {ownWay, ""}, "net": {ownWay, ""}, "networks": {ownWay, ""}, "oom_kill_disable": {toApp, "true"}, "oom_score_adj": {toApp, "10"}, "pid": {toApp, "host"},
	"pids_limit": {toApp, "10"}, "platform": {toApp, "linux/amd64"}, "ports": {toSandbox, "[\"80:80\"]"},
	"post_start": {toApp, "[{command: [a]}]"}, "pre_start": {toApp, ""}, "pre_stop": {toApp, "[{command: [a]}]"}, "privileged": {toNobody, "true"},
	"profiles": {toAll, "[p]"}, "provider": {toNobody, "{type: x}"}, "pull_policy": {toApp, "always"}, "read_only": {toApp, "true"},
	"restart": {toAll, "always"}, "runtime": {toApp, "crun"}, "scale": {ownWay, ""}, "secrets": {ownWay, ""}, "security_opt": {toApp, "[a]"},
	"shm_size": {toApp, "64m"}, "stdin_open": {toApp, "true"}, "stop_grace_period": {toApp, "3s"}, "stop_signal": {toApp, "SIGINT"},
	"storage_opt": {toApp, "{size: 1G}"}, "sysctls": {ownWay, ""}, "tmpfs": {toApp, "[/x]"}, "tty": {toApp, "true"}, "ulimits": {toApp, "{nproc: 9}"},
	"use_api_socket": {toApp, "true"}, "user": {toApp, "www"}, "userns_mode": {toAll, "host"}, "uts": {toApp, "host"},
	"volumes": {toApp, "[/x]"}, "volumes_from": {toApp, "[\"container:x\"]"}, "working_dir": {toApp, "/x"},
}

// TestFields holds for every field that Compose knows where it goes; a new one fails it until somebody has decided.
func TestFields(t *testing.T) {
	known := map[string]int{}
	for i := range reflect.TypeFor[types.ServiceConfig]().NumField() {
		f := reflect.TypeFor[types.ServiceConfig]().Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); name != "" && name != "-" && name != "#extensions" {
			known[name] = i
			if _, ok := fields[name]; !ok {
				t.Errorf("Compose has a field %s: decide where it goes", name)
			}
		}
	}
	for name, place := range fields {
		i, ok := known[name]
		if !ok || place[1] == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			yaml := fmt.Sprintf("services:\n  ok: {image: x}\n  web:\n    %s: %s\n", name, place[1])
			if name != "image" && name != "provider" {
				yaml += "    image: x\n"
			}
			dir := project(t, map[string]string{"compose.yaml": yaml})
			s, r := inject(t, dir, testConfig)
			whole, _ := exact(t, s, r.Output)
			got := whole.Services
			value := func(svc types.ServiceConfig) any { return reflect.ValueOf(svc).Field(i).Interface() }
			want := value(s.project.Services["web"])
			_, meshed := got["web-mesh-sandbox"]
			if meshed == (place[0] == toNobody) {
				t.Fatalf("in the mesh: %v", meshed)
			}
			if stays := equal(want, value(got["web"])); stays == (place[0] == toSandbox) {
				t.Errorf("it stays: %v", stays)
			}
			if meshed {
				if moves := equal(want, value(got["web-mesh-sandbox"])); moves != (place[0] == toSandbox || place[0] == toAll) && name != "attach" && name != "read_only" && name != "cap_drop" {
					t.Errorf("the sandbox has it: %v", moves)
				}
			}
		})
	}
}

// TestFieldsDocumented: docs/compose.md says of every field what becomes of it.
func TestFieldsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/compose.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "## What becomes of a service")
	table, rest, found := strings.Cut(rest, "## Replicas")
	_, left, alsoFound := strings.Cut(rest, "## What is left out of the mesh")
	if !found || !alsoFound {
		t.Fatal("docs/compose.md has not the sections that tell of fields")
	}
	left, _, _ = strings.Cut(left, "\n## ")
	for name, where := range fields {
		if name == "name" || name == "net" { // compose-go's own, no field of a file
			continue
		}
		text := table
		if where[0] == toNobody {
			text = left
		}
		if !regexp.MustCompile("`" + name + "[`:]").MatchString(text) {
			t.Errorf("docs/compose.md does not say what becomes of %s (%s)", name, where[0])
		}
	}
}
