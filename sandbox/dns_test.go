//go:build linux

package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// servingDNS runs a DNS on ports of its own, beside a resolver that answers each query with itself and "!".
func servingDNS(t *testing.T, uidOffset int) (*DNS, string) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go answerUDP(udp, "!")
	go answerTCP(tcp, "!")
	t.Cleanup(func() { _ = tcp.Close(); _ = udp.Close() })

	socket := fmt.Sprintf("@composure-test/%d/%s", os.Getpid(), t.Name())
	d, err := listenDNS(slog.New(slog.DiscardHandler), dnsPlace{
		address: "127.0.0.1:0", socket: socket, resolver: tcp.Addr().String(), uid: uint32(os.Getuid() + uidOffset),
	})
	if err != nil {
		t.Fatal(err)
	}
	untilTheEnd(t, d.Run)
	return d, socket
}

// answerUDP answers each datagram with itself and mark.
func answerUDP(c net.PacketConn, mark string) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(append(buf[:n:n], mark...), from)
	}
}

// answerTCP answers the five bytes of each connection with themselves and mark.
func answerTCP(l net.Listener, mark string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 5)
			if _, err := io.ReadFull(c, buf); err == nil {
				_, _ = io.WriteString(c, string(buf)+mark)
			}
		}()
	}
}

// askDNS is the answer to a message of five bytes.
func askDNS(network, address string) (string, error) {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "", err
	}
	buf := make([]byte, 6)
	_, err = io.ReadFull(c, buf)
	return string(buf), err
}

func wantDNS(t *testing.T, d *DNS, want string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got, err := askDNS(network, d.tcp.Addr().String()); got != want || err != nil {
			t.Errorf("%s: answer %q, %v, want %q", network, got, err, want)
		}
	}
}

// holder takes the sockets and answers by them with mark, until it is told to let go.
func holder(t *testing.T, socket, mark string) (letGo func()) {
	t.Helper()
	lease, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	data, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(8))
	_, n, _, _, err := lease.ReadMsgUnix(data, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		t.Fatal(fds, err)
	}
	first, second := os.NewFile(uintptr(fds[0]), "udp"), os.NewFile(uintptr(fds[1]), "tcp")
	udp, err1 := net.FilePacketConn(first)
	tcp, err2 := net.FileListener(second)
	if err := errors.Join(err1, err2, first.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	go answerUDP(udp, mark)
	go answerTCP(tcp, mark)
	return func() { _, _, _ = udp.Close(), tcp.Close(), lease.Close() }
}

// TestDNSHandover has a proxy come and go: its answers while it is there, those of Docker's resolver else.
func TestDNSHandover(t *testing.T) {
	d, socket := servingDNS(t, 0)
	wantDNS(t, d, "hello!")
	for range 2 {
		letGo := holder(t, socket, "?")
		wantDNS(t, d, "hello?")
		letGo()
		// The sandbox learns of it by the lease: until then the backlog and the buffer keep what comes.
		wantDNS(t, d, "hello!")
	}
}

func TestDNSLargeAnswers(t *testing.T) {
	d, _ := servingDNS(t, 0)
	c, err := net.Dial("udp", d.udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	query := bytes.Repeat([]byte("x"), 9000)
	binary.BigEndian.PutUint16(query, 7)
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(query); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, maxDatagram)
	if n, err := c.Read(answer); err != nil || string(answer[:n]) != string(query)+"!" {
		t.Errorf("answer of %d bytes, %v", n, err)
	}
}

func TestDNSStrangerGetsNothing(t *testing.T) {
	d, socket := servingDNS(t, 1)
	lease, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	if n, err := lease.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
	wantDNS(t, d, "hello!")
}
