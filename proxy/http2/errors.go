package http2

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// Code is an error code of RFC 9113 section 7.
type Code = http2.ErrCode

// The codes that a forwarder gives itself.
const (
	NoError       = http2.ErrCodeNo
	ProtocolError = http2.ErrCodeProtocol
	InternalError = http2.ErrCodeInternal
	RefusedStream = http2.ErrCodeRefusedStream
	Cancel        = http2.ErrCodeCancel
	EnhanceCalm   = http2.ErrCodeEnhanceYourCalm
)

// ConnError ends a connection: its peer broke the protocol, or asked for too much work.
type ConnError struct {
	Code   Code
	Reason string
}

func (e *ConnError) Error() string {
	return fmt.Sprintf("http2: connection: %s (%v)", e.Reason, e.Code)
}

// StreamError is how a stream ended before its time.
type StreamError struct {
	Code   Code
	Reason string
	// Remote says that the peer has reset it.
	Remote bool
	// Unprocessed says that the peer has not worked on the request, so that it may be sent again, whatever its method
	// (RFC 9113 section 8.7).
	Unprocessed bool
	// Lost says that the connection ended, and the stream with it.
	Lost bool
}

func (e *StreamError) Error() string { return fmt.Sprintf("http2: stream: %s (%v)", e.Reason, e.Code) }

// Unprocessed reports whether err says that the peer has not worked on the request.
func Unprocessed(err error) bool {
	var s *StreamError
	return errors.As(err, &s) && s.Unprocessed
}

// Lost reports whether err says that the connection ended, and the stream with it.
func Lost(err error) bool {
	var s *StreamError
	return errors.As(err, &s) && s.Lost
}

var (
	// ErrStreamIdle is a stream on which nothing has moved for too long.
	ErrStreamIdle = &StreamError{Code: http2.ErrCodeCancel, Reason: "nothing has moved for too long"}
	// ErrUnavailable is a connection that takes no further stream: it has as many as its peer allows, drains, or is gone.
	ErrUnavailable = errors.New("http2: the connection takes no further stream")

	// errStopped ends the sending of a stream whose peer has answered in full and wants no more.
	errStopped = &StreamError{Code: http2.ErrCodeNo, Reason: "the peer wants no more", Remote: true}
	errEnded   = errors.New("http2: the stream has been ended already")
	errClosed  = &StreamError{Code: http2.ErrCodeCancel, Reason: "closed here"}
)

func protocol(reason string) *ConnError { return &ConnError{http2.ErrCodeProtocol, reason} }

func malformed(reason string) *StreamError {
	return &StreamError{Code: http2.ErrCodeProtocol, Reason: reason}
}
