// Package sandbox is what runs in the container that owns a workload's network namespace: it captures the
// namespace's TCP with iptables rules, guards against TCP that is not captured, and holds the two capture
// listeners, which it hands to each proxy that comes.
//
// Plan is pure and says which rules; Program puts them in force; Server holds the listeners; DropPrivileges
// gives up everything that only programming needed.
//
// # What is captured
//
// All TCP that leaves the namespace goes to mesh.PortOutbound, all that enters it to mesh.PortInbound, but for:
// loopback (Docker's DNS lives at 127.0.0.11), the proxy's own (uid mesh.UIDProxy), TCP to port 53 (the
// engine's upstream lookups leave from inside the namespace), the proxy's ports for people and probes (15021,
// 15090), and the user's exclusions. UDP is not captured.
//
// # The guard
//
// REDIRECT decides once a connection, at its first packet. A connection that was opened before the rules would
// stay in plain text for good, so the filter table resets every TCP connection that was not captured and is
// not excluded. The proxy's own connections are told by their owner, but the owner match sees only packets that
// belong to a process's socket: not those of a socket that was closed with data still to be sent, nor the last
// ones of a connection in TIME_WAIT. A guard on the owner alone would therefore reset the proxy's own closing
// connections and lose data. So the first packet of uid 1337 marks its connection (connmark), and a marked
// connection passes whoever sends for it.
package sandbox
