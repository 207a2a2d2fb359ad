// Package http2 is the stream layer of HTTP/2 (RFC 9113) for a proxy, both sides of it: a ServerConn hands each request to
// a handler, a ClientConn opens a stream for each. Frames are read by golang.org/x/net/http2's Framer and header blocks by
// its hpack; streams, flow control, limits and scheduling are here.
//
// Heads have the types of package http1, held to the same rules, so that routes and filters need not know how a request
// came, and either version can be forwarded as the other: a body is read with Read until io.EOF, then has a Trailer, and
// Framing says which form it takes in HTTP/1 (Chunked where its length is not known). To forward one stream as one
// stream, a handler calls ClientConn.Open with the request, ties the fates together with OnReset, copies the request's body
// in a goroutine of its own unless Framing is NoBody, relays each head of Response, and copies the body and the trailers
// back. It then calls StopReading, waits for the copier, and closes the upstream's stream: the server may end first. relay
// in the tests is that forwarder. Where an error is Unprocessed, or Open says ErrUnavailable, the request may go elsewhere.
//
// Flow control is carried through, because Write returns only when the windows of the peer have taken the bytes, and a
// stream's window opens only as its body is read. A connection's window opens as bytes arrive: what is buffered is
// bounded for each stream, so one that is slow costs its neighbours nothing.
//
// A connection has two goroutines, one that reads and one that writes, and one more for each handler. The writer sends in
// one go what has gathered meanwhile; streams that have more to send than fits take turns, a frame each.
package http2
