//go:build linux

package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The gate is one policy routing rule for IPv4 and one for IPv6, in front of every route but those to the namespace's
// own addresses: nothing can be sent to another machine, so no connection comes about in either direction.
//
// It closes the gap between the sandbox's start and its rules, which take a tenth of a second to find out about
// backends and to program. An engine that starts everything at once, as after its own restart, may start an
// application within that. Two netlink messages take a tenth of a millisecond.

// gatePriority is after the table of local addresses (0) and before every other (ip-rule(8)).
const gatePriority = 1

// CloseGate cuts the namespace off from all others. It needs CAP_NET_ADMIN.
func CloseGate() error { return gate(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.EEXIST) }

// OpenGate ends what CloseGate did.
func OpenGate() error { return gate(unix.RTM_DELRULE, 0, unix.ENOENT) }

// gate changes the rule of both families; already is the error that says that there is nothing to do.
func gate(message, flags uint16, already error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("gate: netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := request(fd, ruleMessage(message, flags, family))
		switch {
		case err == nil, errors.Is(err, already):
		case family == unix.AF_INET6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)): // no IPv6 at all
		default:
			return fmt.Errorf("gate: routing rule of address family %d: %w", family, err)
		}
	}
	return nil
}

// ruleMessage is a netlink message about the rule "priority 1: unreachable" (linux/fib_rules.h).
func ruleMessage(message, flags uint16, family uint8) []byte {
	const actionUnreachable = 7 // FR_ACT_UNREACHABLE
	const attrPriority = 6      // FRA_PRIORITY
	b := make([]byte, unix.SizeofNlMsghdr, 64)
	b = append(b, family, 0, 0, 0, 0, 0, 0, actionUnreachable) // fib_rule_hdr: … table, two reserved, action
	b = binary.NativeEndian.AppendUint32(b, 0)                 // its flags
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, attrPriority)
	b = binary.NativeEndian.AppendUint32(b, gatePriority)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
	h.Len, h.Type, h.Flags, h.Seq = uint32(len(b)), message, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags, 1
	return b
}

// request sends a message and returns the kernel's answer.
func request(fd int, message []byte) error {
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink: unexpected answer of %d bytes", n)
	}
	if errno := -int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
