package keeper

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestContainerID(t *testing.T) {
	a, b := strings.Repeat("0a", 32), strings.Repeat("1b", 32)
	for name, test := range map[string]struct{ cgroup, want, err string }{
		"v1, host namespace":       {cgroup: "12:pids:/docker/" + a + "\n2:cpu,cpuacct:/docker/" + a + "\n1:name=systemd:/docker/" + a + "\n0::/system.slice/containerd.service\n", want: a},
		"v1, private namespace":    {cgroup: "12:pids:/../" + a + "\n1:name=systemd:/../" + a + "\n0::/\n", want: a},
		"v1, systemd driver":       {cgroup: "5:memory:/system.slice/docker-" + a + ".scope\n1:name=systemd:/system.slice/docker-" + a + ".scope\n", want: a},
		"v2, cgroupfs driver":      {cgroup: "0::/docker/" + a + "\n", want: a},
		"v2, private namespace":    {cgroup: "0::/../" + a + "\n", want: a},
		"v2, systemd driver":       {cgroup: "0::/system.slice/docker-" + a + ".scope\n", want: a},
		"v2, systemd, private":     {cgroup: "0::/../docker-" + a + ".scope\n", want: a},
		"a parent of the user's":   {cgroup: "0::/team/web/" + a + "\n", want: a},
		"an engine in a container": {cgroup: "0::/docker/" + b + "/docker/" + a + "\n", want: a},
		"no newline at the end":    {cgroup: "0::/docker/" + a, want: a},
		"the host":                 {cgroup: "0::/user.slice/user-1000.slice/session-2.scope\n", err: "in no Docker container"},
		"root":                     {cgroup: "9:name=systemd:/\n0::/\n", err: "in no Docker container"},
		"podman":                   {cgroup: "0::/machine.slice/libpod-" + a + ".scope/container\n", err: "in no Docker container"},
		"podman, cgroupfs":         {cgroup: "0::/libpod_parent/libpod-" + a + "\n", err: "in no Docker container"},
		"kubernetes":               {cgroup: "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + a + ".scope\n", err: "in no Docker container"},
		"below a container":        {cgroup: "0::/docker/" + a + "/init.scope\n", err: "in no Docker container"},
		"short id":                 {cgroup: "0::/docker/" + a[:12] + "\n", err: "in no Docker container"},
		"upper case":               {cgroup: "0::/docker/" + strings.ToUpper(a) + "\n", err: "in no Docker container"},
		"longer id":                {cgroup: "0::/docker/" + a + "0\n", err: "in no Docker container"},
		"two containers":           {cgroup: "2:cpu:/docker/" + a + "\n1:pids:/docker/" + b + "\n", err: "two containers"},
		"empty":                    {err: "in no Docker container"},
		"garbage":                  {cgroup: "docker/" + a + "\n", err: "want <hierarchy>"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := containerID(test.cgroup)
			if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("containerID = %q, %v; want %q, %q", got, err, test.want, test.err)
			}
		})
	}
}

func FuzzContainerID(f *testing.F) {
	f.Add("0::/docker/" + strings.Repeat("0a", 32) + "\n")
	f.Add("1:name=systemd:/../" + strings.Repeat("0a", 32))
	f.Fuzz(func(t *testing.T, cgroup string) {
		id, err := containerID(cgroup)
		if err == nil && (len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" || !strings.Contains(cgroup, id)) {
			t.Errorf("containerID(%q) = %q", cgroup, id)
		}
	})
}

func TestStartTime(t *testing.T) {
	root := t.TempDir()
	write := func(pid, stat string) {
		if err := os.Mkdir(filepath.Join(root, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, pid, "stat"), []byte(stat), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fields := strings.Repeat("0 ", 18)
	write("7", "7 (a) b) (c) S "+fields+"4711 0 0\n")
	write("8", "8 (short) S 1 2\n")
	if got, err := startTime(root, 7); got != "4711" || err != nil {
		t.Errorf("startTime = %q, %v", got, err)
	}
	if _, err := startTime(root, 8); err == nil {
		t.Error("a short stat has a start time")
	}
	if got, err := startTime("/proc", os.Getpid()); got == "" || err != nil {
		t.Errorf("startTime of this process = %q, %v", got, err)
	}
}

// TestPeerHelper is the process at the other end in TestPeerOf.
func TestPeerHelper(t *testing.T) {
	socket := os.Getenv("KEEPER_TEST_SOCKET")
	if socket == "" {
		t.Skip("runs as a child of TestPeerOf only")
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(conn).ReadByte(); err != nil {
		t.Fatal(err)
	}
}

func TestPeerOf(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	child := exec.Command(os.Args[0], "-test.run=^TestPeerHelper$")
	child.Env = append(os.Environ(), "KEEPER_TEST_SOCKET="+socket)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	unix := conn.(*net.UnixConn)
	start := acceptedStart(unix, "/proc")
	p, err := peerOf(unix, "/proc", start)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.pid != child.Process.Pid || p.uid != os.Getuid() {
		t.Errorf("peer is pid %d uid %d, want %d %d", p.pid, p.uid, child.Process.Pid, os.Getuid())
	}
	if exited, err := p.exited(); exited || err != nil {
		t.Errorf("a living peer: exited %v, %v", exited, err)
	}
	if want, err := startTime("/proc", p.pid); start != want || err != nil {
		t.Errorf("start time is %q, want %q, %v", start, want, err)
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if exited, err := p.exited(); !exited || err != nil {
		t.Errorf("a dead peer: exited %v, %v", exited, err)
	}
	if late, err := peerOf(unix, "/proc", start); err == nil {
		exited, err := late.exited()
		if !exited || err != nil {
			t.Errorf("a dead peer that is asked about later: exited %v, %v", exited, err)
		}
		late.close()
	}
}

// Where the kernel has no SO_PEERPIDFD, another start time under the same pid is another process.
func TestStartTimeTellsReusedPids(t *testing.T) {
	pid := os.Getpid()
	own, err := startTime("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		pid     int
		before  string
		expired bool
	}{
		"same":    {pid, own, false},
		"reused":  {pid, "1", true},
		"unknown": {pid, "", true},
		"gone":    {1 << 30, own, true},
	} {
		exited, err := startChanged("/proc", test.pid, test.before)
		if exited != test.expired || err != nil {
			t.Errorf("%s: exited %v, %v", name, exited, err)
		}
	}
}
