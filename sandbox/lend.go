//go:build linux

package sandbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acceptPause keeps an accept or a read that fails from being tried in a busy loop.
const acceptPause = 50 * time.Millisecond

// lender lends sockets, as file descriptors, to each process of one user that connects to a unix socket. The peer uses
// them while its connection is open, and several may at once. What nobody has held for the grace is served by a stand-in.
type lender struct {
	what    string // the sockets' name in the log
	sockets []lent
	uid     uint32
	grace   time.Duration
	// standIn are the loops that serve the sockets in the meantime. Each ends when its socket is closed or its deadline is
	// in the past, and never calls back.
	standIn []func()
	// changed is told, if it is there, when the stand-in begins and when it has ended.
	changed func(standsIn bool)
	log     *slog.Logger

	peers    *net.UnixListener
	stranger sync.Once // logs the first

	mu       sync.Mutex
	closed   bool
	holders  int
	spell    int // counts the spells without a holder, so that a late timer knows that its spell is over
	standing bool
	loops    sync.WaitGroup
}

// lent is a socket of a lender.
type lent interface {
	syscall.Conn
	SetDeadline(at time.Time) error
	Close() error
}

// listen binds the unix socket.
func (l *lender) listen(socket string) (err error) {
	l.peers, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socket})
	return err
}

// Close closes the sockets; what waits in a backlog is reset unless a peer still holds it.
func (l *lender) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for _, s := range l.sockets {
		_ = s.Close()
	}
	if l.peers != nil {
		_ = l.peers.Close()
	}
	l.loops.Wait()
}

// Run serves until ctx is done, and closes the sockets.
func (l *lender) Run(ctx context.Context) error {
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, l.Close)
	defer stop()

	l.wait()
	for {
		conn, err := l.peers.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Short of descriptors or memory. To give up would take the namespace down.
			l.log.Warn("a proxy could not be accepted", "asks_for", l.what, "error", err)
			time.Sleep(acceptPause)
			continue
		}
		conns.Go(func() {
			hangUp := func() { _ = conn.Close() }
			defer hangUp()
			defer context.AfterFunc(ctx, hangUp)()
			l.serve(conn)
		})
	}
}

// serve lends the sockets to one peer and counts it as a holder until it hangs up.
func (l *lender) serve(conn *net.UnixConn) {
	cred, err := peerCred(conn)
	if err != nil {
		l.log.Warn("who asks is unknown; refused", "asks_for", l.what, "error", err)
		return
	}
	if cred.Uid != l.uid {
		l.stranger.Do(func() { // once, lest an application fill the log
			l.log.Warn("a process that is not the proxy asked; it and its like are refused", "asks_for", l.what, "uid", cred.Uid, "want", l.uid)
		})
		return
	}
	holders := l.claim()
	defer l.release()
	if err := l.hand(conn); err != nil {
		l.log.Warn("a proxy could not be served", "asks_for", l.what, "error", err)
		return
	}
	l.log.Info("a proxy holds "+l.what, "holders", holders)
	_, _ = io.Copy(io.Discard, conn) // until the peer hangs up, however it does
	l.log.Info("a proxy let go of " + l.what)
}

// claim counts a holder and returns how many there are. When it returns nothing here reads or accepts, so whatever comes
// from now on is the holder's.
func (l *lender) claim() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders++
	l.spell++
	if l.standing {
		l.setDeadlines(time.Unix(1, 0))
		l.loops.Wait()
		l.setDeadlines(time.Time{})
		l.stand(false)
	}
	return l.holders
}

func (l *lender) setDeadlines(at time.Time) {
	for _, s := range l.sockets {
		_ = s.SetDeadline(at) // fails on a closed socket alone, whose loop has ended
	}
}

func (l *lender) stand(in bool) {
	l.standing = in
	if l.changed != nil {
		l.changed(in)
	}
}

func (l *lender) release() {
	l.mu.Lock()
	l.holders--
	l.mu.Unlock()
	l.wait()
}

// wait begins a spell without a holder, at whose end the stand-in begins.
func (l *lender) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holders > 0 {
		return
	}
	l.spell++
	spell := l.spell
	time.AfterFunc(l.grace, func() { l.begin(spell) })
}

func (l *lender) begin(spell int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.standing || l.spell != spell {
		return
	}
	l.stand(true)
	for _, loop := range l.standIn {
		l.loops.Go(loop)
	}
}

// over reports whether a loop of the stand-in must end after an error of its socket. Else it pauses: the process is short
// of descriptors, or the connection died in the backlog.
func over(err error) bool {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	time.Sleep(acceptPause)
	return false
}

// hand sends all sockets in one message. The descriptors are used where they are: File would duplicate them, and
// File.Fd would make the sockets, which the copies share, blocking.
func (l *lender) hand(conn *net.UnixConn) error {
	fds := make([]int, 0, len(l.sockets))
	var send func(rest []lent) error
	send = func(rest []lent) error {
		if len(rest) == 0 {
			_, _, err := conn.WriteMsgUnix([]byte{'1'}, unix.UnixRights(fds...), nil)
			return err
		}
		raw, err := rest[0].SyscallConn()
		if err != nil {
			return err
		}
		var sent error
		if err := raw.Control(func(fd uintptr) {
			fds = append(fds, int(fd))
			sent = send(rest[1:])
		}); err != nil {
			return err
		}
		return sent
	}
	return send(l.sockets)
}

func peerCred(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, cerr
}

// listenTCP binds plain TCP: Go's default of Multipath TCP would hand the proxy sockets that know no original
// destination.
func listenTCP(address string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}
