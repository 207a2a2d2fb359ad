package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, by the kernel's word.
type peer struct {
	pid, uid int
	// exited reports whether the process that connected has ended, so that its pid may be another's by now.
	exited func() (bool, error)
	close  func()
}

// peerOf asks the kernel who connected. The caller closes the peer.
func peerOf(conn *net.UnixConn, procRoot, startAtAccept string) (*peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		cred          *unix.Ucred
		pidfd         int
		credErr, err2 error
	)
	err = raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
			pidfd, err2 = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	})
	if err := errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("credentials of the peer: %w", err)
	}
	if cred.Pid == 0 {
		return nil, errors.New("the caller's process is not visible: the keeper must run with pid: host")
	}
	p := &peer{pid: int(cred.Pid), uid: int(cred.Uid), close: func() {}}
	switch {
	case err2 == nil: // Linux 6.5 and later
		p.exited = func() (bool, error) { return pidfdExited(pidfd) }
		p.close = func() { _ = unix.Close(pidfd) }
	case errors.Is(err2, unix.ENOPROTOOPT):
		p.exited = func() (bool, error) { return startChanged(procRoot, p.pid, startAtAccept) }
	default:
		return nil, fmt.Errorf("pidfd of the peer: %w", err2) // ESRCH, EINVAL: it has ended
	}
	return p, nil
}

// acceptedStart is the start time of a connection's peer at the time it was accepted, "" if it can't be told.
func acceptedStart(conn *net.UnixConn, procRoot string) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return ""
	}
	var start string
	_ = raw.Control(func(fd uintptr) { // on failure it stays "", which peerOf takes for an ended process
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			start, _ = startTime(procRoot, int(cred.Pid))
		}
	})
	return start
}

// pidfdExited polls: a pidfd becomes readable when its process ends (pidfd_open(2)).
func pidfdExited(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// startChanged reports whether the process with the given pid is another than the one that started before.
func startChanged(procRoot string, pid int, before string) (bool, error) {
	now, err := startTime(procRoot, pid)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return now != before || before == "", err
}

// startTime is field 22 of /proc/<pid>/stat (proc_pid_stat(5)). The second field, the command in parentheses, may
// hold anything.
func startTime(procRoot string, pid int) (string, error) {
	data, err := os.ReadFile(filepath.Join(procRoot, strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	rest := string(data)
	fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:])
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: %d fields after the command, want 20", pid, len(fields))
	}
	return fields[19], nil
}

// readCgroup is /proc/<pid>/cgroup.
func readCgroup(procRoot string, pid int) (string, error) {
	data, err := os.ReadFile(filepath.Join(procRoot, strconv.Itoa(pid), "cgroup"))
	return string(data), err
}

// dockerCgroup is the last element of a container's cgroup path: the id with the cgroupfs driver, a scope with
// systemd's. Other engines' names do not match.
var dockerCgroup = regexp.MustCompile(`^(?:docker-([0-9a-f]{64})\.scope|([0-9a-f]{64}))$`)

// containerID finds the container in the text of /proc/<pid>/cgroup: lines <hierarchy>:<controllers>:<path>
// (cgroups(7)). Controllers that Docker does not manage name no container; those that do must agree.
func containerID(cgroup string) (string, error) {
	var id string
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			return "", fmt.Errorf("cgroup line %q: want <hierarchy>:<controllers>:<path>", line)
		}
		m := dockerCgroup.FindStringSubmatch(parts[2][strings.LastIndexByte(parts[2], '/')+1:])
		if m == nil {
			continue
		}
		found := m[1] + m[2]
		if id != "" && id != found {
			return "", fmt.Errorf("cgroup names two containers, %.12s and %.12s", id, found)
		}
		id = found
	}
	if id == "" {
		return "", errors.New("the process is in no Docker container")
	}
	return id, nil
}
