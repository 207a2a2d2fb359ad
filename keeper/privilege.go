package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

// DropPrivileges gives up what the process does not need beyond talking to the engine's socket. As root it becomes
// mesh.UIDKeeper, with the socket's group where that is what opens the socket. Where only the socket's owner may
// use it, the process stays root, without capabilities, and takes over dirs, which it has to write. In either case
// it can gain nothing again.
func DropPrivileges(log *slog.Logger, socket string, dirs ...string) error {
	if os.Geteuid() == 0 {
		if err := dropRoot(socket, dirs); err != nil {
			return fmt.Errorf("give up privileges: %w", err)
		}
	}
	if err := setNoNewPrivileges(); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := clearCapabilities(); err != nil {
		return fmt.Errorf("clear capabilities: %w", err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	log.Info("privileges dropped", "uid", os.Geteuid(), "gid", os.Getegid(), "groups", groups)
	return nil
}

func dropRoot(socket string, dirs []string) error {
	fi, err := os.Stat(socket)
	if err != nil {
		return fmt.Errorf("docker socket: %w: mount the engine's socket there", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("docker socket: %s is no socket: mount the engine's socket there", socket)
	}
	var groups []int
	switch perm := fi.Mode().Perm(); {
	case perm&0o006 == 0o006: // anybody's
	case perm&0o060 == 0o060:
		groups = []int{int(st.Gid)}
	default:
		for _, dir := range dirs {
			if err := os.Chown(dir, 0, 0); err != nil {
				return fmt.Errorf("only user %d may use the docker socket %s, so the keeper stays root and must own %s: %w "+
					"(it needs the capability CHOWN, or the socket a group)", st.Uid, socket, dir, err)
			}
		}
		return syscall.Setgroups(nil)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("set groups %v: %w (it needs the capability SETGID)", groups, err)
	}
	if err := syscall.Setgid(mesh.UIDKeeper); err != nil {
		return fmt.Errorf("set group id %d: %w (it needs the capability SETGID)", mesh.UIDKeeper, err)
	}
	if err := syscall.Setuid(mesh.UIDKeeper); err != nil {
		return fmt.Errorf("set user id %d: %w (it needs the capability SETUID)", mesh.UIDKeeper, err)
	}
	return nil
}

// clearCapabilities empties the effective, permitted and inheritable sets (capset(2)).
func clearCapabilities() error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0)
	return threadsError(errno)
}

func setNoNewPrivileges() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	return threadsError(errno)
}

// threadsError explains what AllThreadsSyscall, which has the effect in every thread, has returned.
func threadsError(errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return errors.New("this build uses cgo, with which not all threads can be reached: build with CGO_ENABLED=0")
	}
	return errno
}
