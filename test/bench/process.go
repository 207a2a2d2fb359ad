package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program that runs until its case ends, with its children.
type process struct {
	cmd  *exec.Cmd
	said bytes.Buffer
	pids []int
	done chan struct{}
}

// start runs a program on one CPU until its address takes connections.
// children is how many others it starts.
func (b *bench) start(cpu int, ready string, children int, env []string, program string, args ...string) (*process, error) {
	p := &process{done: make(chan struct{})}
	p.cmd = exec.CommandContext(b.ctx, "taskset", append([]string{"-c", strconv.Itoa(cpu), program}, args...)...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.said
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // it is ended by a signal
		close(p.done)
	}()
	b.running = append(b.running, p)
	if err := p.await(ready, children); err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	return p, nil
}

func (p *process) await(ready string, children int) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		network := "tcp"
		if strings.HasPrefix(ready, "/") {
			network = "unix"
		}
		c, err := (&net.Dialer{}).Dial(network, ready)
		if err == nil {
			_ = c.Close() // it has served
			if p.pids, err = family(p.cmd.Process.Pid); err == nil && len(p.pids) > children {
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %s", p.said.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it does not get ready: %w: %s", err, p.said.String())
		}
	}
}

// family is a process and all that it has started.
func family(pid int) ([]int, error) {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pids[i]))
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(children)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// cpu is the CPU time that the process and its children have used, to the nanosecond: /proc/PID/stat counts in ticks of
// 10 ms. See clock_getcpuclockid(3).
func (p *process) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range p.pids {
		const cpuClockSched = 2
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|cpuClockSched), &ts); err != nil { //nolint:gosec // a pid fits
			return 0, fmt.Errorf("cpu clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// rss is the resident memory of the process and its children in MB, pages that they share counted once: the largest
// whole and of the others what is theirs alone.
func (p *process) rss() (float64, error) {
	var kb, shared float64
	for _, pid := range p.pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		anon := field(status, "RssAnon:")
		kb += anon
		shared = max(shared, field(status, "VmRSS:")-anon)
	}
	return (kb + shared) / 1024, nil
}

func field(status []byte, name string) float64 {
	_, rest, _ := bytes.Cut(status, []byte(name))
	var kb float64
	_, _ = fmt.Sscan(string(rest), &kb) // 0 where the kernel does not say
	return kb
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	select {
	case <-p.done:
	case <-time.After(3 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (b *bench) stopAll() {
	for _, p := range b.running {
		p.stop()
	}
	b.running = nil
}

// cores are the CPUs for the proxies and for the rest.
func cores() (proxy, load int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, 0, err
	}
	var cpus []int
	for i := range 1024 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	if len(cpus) < 2 {
		return 0, 0, errors.New("it needs two CPUs")
	}
	return cpus[0], cpus[1], nil
}

// raiseFileLimit makes room for many connections and returns how many descriptors a process may have.
func raiseFileLimit() (int, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, err
	}
	lim.Cur = min(lim.Max, 1<<16)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("RLIMIT_NOFILE %d: %w", lim.Cur, err)
	}
	return int(lim.Cur), nil //nolint:gosec // at most 65536
}

// freePort is a port that nobody listens on now.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
