//go:build linux

package sandbox

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const droppedStatus = `Name:	sandbox
Uid:	1339	1339	1339	1339
Gid:	1339	1339	1339	1339
Groups:	 
CapInh:	0000000000000000
CapPrm:	0000000000000000
CapEff:	0000000000000000
CapBnd:	0000000000000000
CapAmb:	0000000000000000
NoNewPrivs:	1
`

func TestCheckStatus(t *testing.T) {
	if err := checkStatus([]byte(droppedStatus)); err != nil {
		t.Errorf("dropped: %v", err)
	}
	for field, bad := range map[string]string{
		"Uid":        "1339	0	1339	1339",
		"Gid":        "0	0	0	0",
		"Groups":     "0 ",
		"CapInh":     "0000000000001000",
		"CapBnd":     "00000000a80425fb",
		"CapAmb":     "0000000000000001",
		"NoNewPrivs": "0",
	} {
		var b strings.Builder
		for line := range strings.Lines(droppedStatus) {
			if strings.HasPrefix(line, field+":") {
				line = field + ":\t" + bad + "\n"
			}
			b.WriteString(line)
		}
		if err := checkStatus([]byte(b.String())); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s %q: got %v", field, bad, err)
		}
	}
}

func TestReap(t *testing.T) {
	child := exec.Command("true")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	// Waits until it is dead and leaves it a zombie.
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Reap(ctx); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("the zombie is still there (%v)", err)
	}
}
