//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

// DropPrivileges makes the process, all its threads, one of mesh.UIDSandbox that can never gain anything
// again: no groups, no capability in any set, no_new_privs. It reads the kernel's word on the result. It needs
// a binary without cgo, since only there can Go change all threads, and the capabilities SETUID, SETGID and
// SETPCAP.
func DropPrivileges() error {
	if err := prctlAll(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := prctlAll(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	// The kernel answers EINVAL above the last capability that it knows.
	for c := uintptr(0); c < 64; c++ {
		if err := prctlAll(unix.PR_CAPBSET_DROP, c); errors.Is(err, unix.EINVAL) {
			break
		} else if err != nil {
			return fmt.Errorf("drop capability %d from the bounding set (needs SETPCAP in cap_add): %w", c, err)
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("drop the supplementary groups (needs SETGID in cap_add): %w", err)
	}
	if err := syscall.Setresgid(mesh.UIDSandbox, mesh.UIDSandbox, mesh.UIDSandbox); err != nil {
		return fmt.Errorf("become group %d (needs SETGID in cap_add): %w", mesh.UIDSandbox, err)
	}
	if err := syscall.Setresuid(mesh.UIDSandbox, mesh.UIDSandbox, mesh.UIDSandbox); err != nil {
		return fmt.Errorf("become user %d (needs SETUID in cap_add): %w", mesh.UIDSandbox, err)
	}
	// Leaving uid 0 emptied the effective and permitted sets; this empties the inheritable one too.
	if err := clearCaps(); err != nil {
		return fmt.Errorf("clear the capabilities: %w", err)
	}
	return verifyDropped()
}

func prctlAll(option, arg uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, option, arg, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func clearCaps() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&data)
	if errno != 0 {
		return errno
	}
	return nil
}

// verifyDropped reads every thread's status.
func verifyDropped() error {
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	if len(threads) == 0 {
		return errors.New("/proc is not mounted: can't verify that privileges are dropped")
	}
	for _, path := range threads {
		status, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread ended
		}
		if err != nil {
			return fmt.Errorf("verify dropped privileges: %w", err)
		}
		if err := checkStatus(status); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// checkStatus wants a thread's status to show no privilege.
func checkStatus(status []byte) error {
	ids := strings.TrimSpace(strings.Repeat(fmt.Sprintf("%d\t", mesh.UIDSandbox), 4))
	const none = "0000000000000000"
	for _, want := range [][2]string{
		{"Uid", ids}, {"Gid", ids}, {"Groups", ""},
		{"CapInh", none}, {"CapPrm", none}, {"CapEff", none}, {"CapBnd", none}, {"CapAmb", none},
		{"NoNewPrivs", "1"},
	} {
		if have := statusField(status, want[0]); have != want[1] {
			return fmt.Errorf("%s is %q, want %q", want[0], have, want[1])
		}
	}
	return nil
}
