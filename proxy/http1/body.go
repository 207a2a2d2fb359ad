package http1

import (
	"errors"
	"io"
)

// body is the state of the body that is being read.
type body struct {
	framing Framing
	left    int64 // of the body, or of the current chunk
	state   chunkState
	digits  int
	done    bool
	excess  int64 // bytes of chunk framing beyond what data justifies

	limits  Limits
	room    int // for trailers, of HeadBytes
	fields  int // so far, of Fields
	trailer []byte
	parsed  Header
}

type chunkState uint8

const (
	chunkSize      chunkState = iota // digits of a chunk's size
	chunkExtension                   // after them, up to CR
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerLine // in a trailer line, or at the beginning of the last, empty one
	trailerLF
)

// maxChunkExcess bounds extensions and tiny chunks, as net/http does: framing may exceed 16 bytes a chunk plus twice
// the data by this much.
const maxChunkExcess = 16 << 10

// maxChunkExtension bounds one chunk's extensions.
const maxChunkExtension = 1 << 10

func (b *body) start(f Framing, length int64, lim Limits, headBytes, fields int) {
	trailer, parsed := b.trailer[:0], b.parsed[:0]
	*b = body{framing: f, left: length, limits: lim, room: lim.HeadBytes - headBytes, fields: fields, trailer: trailer, parsed: parsed}
	b.done = f == NoBody
}

// Done reports whether the body has been read to its end.
func (r *Reader) Done() bool { return r.body.done }

// Ready reports whether Read would yield something without reading from the source.
func (r *Reader) Ready() bool { return r.body.done || r.r < r.w }

// Trailer is the trailer section of a chunked body that is Done. Valid until the next message is parsed.
func (r *Reader) Trailer() Header { return r.body.parsed }

// Read reads from the body of the current message, without its framing. What is there already is returned at once;
// otherwise it reads once from the source. At the end it returns io.EOF, possibly along with the last bytes; a
// connection that ends before the body does is io.ErrUnexpectedEOF, and a broken framing is an *Error. An error of
// the source that is not an end, such as an expired deadline, leaves the reader as it was.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	switch r.body.framing {
	case Length:
		return r.readLength(p)
	case UntilClose:
		return r.readUntilClose(p)
	case Chunked:
		return r.readChunked(p)
	}
	return 0, io.EOF
}

func (r *Reader) readLength(p []byte) (int, error) {
	b := &r.body
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := r.raw(p)
	b.left -= int64(n)
	if b.left == 0 {
		b.done = true
		return n, io.EOF
	}
	return n, unexpected(err)
}

func (r *Reader) readUntilClose(p []byte) (int, error) {
	if r.body.done {
		return 0, io.EOF
	}
	n, err := r.raw(p)
	if errors.Is(err, io.EOF) {
		r.body.done = true
	}
	return n, err
}

// raw reads what is there, or once from the source straight into p.
func (r *Reader) raw(p []byte) (int, error) {
	if r.r < r.w {
		n := copy(p, r.buf[r.r:r.w])
		r.r += n
		return n, nil
	}
	n, err := r.src.Read(p)
	if n > 0 {
		// An error will come again.
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readChunked decodes all that is there, so that small chunks which came together leave together.
func (r *Reader) readChunked(p []byte) (int, error) {
	b := &r.body
	n := 0
	for !b.done {
		if b.state == chunkData {
			if n == len(p) {
				return n, nil
			}
			want := p[n:min(len(p), n+int(min(b.left, int64(len(p)))))]
			if r.r == r.w && (n > 0 || len(want) < 512) {
				// Little is wanted: read ahead instead, with the framing that follows.
				if n > 0 {
					return n, nil
				}
				if err := r.Fill(); err != nil {
					return 0, unexpected(err)
				}
			}
			m, err := r.raw(want)
			n += m
			b.left -= int64(m)
			if err != nil {
				return n, unexpected(err)
			}
			if b.left == 0 {
				b.state = chunkDataCR
			}
			continue
		}
		if r.r == r.w {
			if n > 0 {
				return n, nil
			}
			if err := r.Fill(); err != nil {
				return 0, unexpected(err)
			}
		}
		c := r.buf[r.r]
		if err := b.framingByte(c); err != nil {
			return n, err
		}
		r.r++
	}
	return n, io.EOF
}

// framingByte takes one byte that is not data.
func (b *body) framingByte(c byte) error {
	switch b.state {
	case chunkSize:
		return b.sizeByte(c)
	case chunkExtension:
		b.digits++
		switch {
		case c == '\r':
			b.state = chunkSizeLF
		case class[c]&isValue == 0:
			return bad("chunk extension has a control character")
		case b.digits > maxChunkExtension:
			return bad("chunk extension is too long")
		}
	case chunkSizeLF:
		if c != '\n' {
			return bad("chunk size ends without CRLF")
		}
		return b.sizeDone()
	case chunkDataCR:
		if c != '\r' {
			return bad("chunk data is longer than its size")
		}
		b.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return bad("chunk data is longer than its size")
		}
		b.state, b.digits = chunkSize, 0
	case trailerLine:
		if c == '\r' {
			b.state = trailerLF
			return nil
		}
		if c == '\n' {
			return bad("trailer line ends without CR")
		}
		if len(b.trailer) >= b.room {
			return &Error{Status: 431, Reason: "trailers are too large"}
		}
		b.trailer = append(b.trailer, c)
	case trailerLF:
		if c != '\n' {
			return bad("trailer line has a bare CR")
		}
		return b.trailerDone()
	}
	return nil
}

func (b *body) sizeByte(c byte) error {
	var d int64
	switch {
	case '0' <= c && c <= '9':
		d = int64(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		d = int64(c|0x20-'a') + 10
	case b.digits > 0 && c == '\r':
		b.state = chunkSizeLF
		return nil
	case b.digits > 0 && c == ';':
		b.state, b.digits = chunkExtension, b.digits+1
		return nil
	default:
		return bad("chunk size is not hexadecimal")
	}
	if b.digits == 15 {
		// 15 digits fit in an int64 with room to spare; more are no honest size.
		return bad("chunk size is too large")
	}
	if b.digits == 0 {
		b.left = 0
	}
	b.digits++
	b.left = b.left<<4 | d
	return nil
}

func (b *body) sizeDone() error {
	b.excess += int64(b.digits) + 2 - 16 - 2*min(b.left, 1<<40)
	b.excess = max(b.excess, 0)
	if b.excess > maxChunkExcess {
		return bad("chunked body has too much framing")
	}
	if b.left == 0 {
		b.state = trailerLine
	} else {
		b.state = chunkData
	}
	return nil
}

// trailerDone ends a trailer line. The lines lie one behind the other in b.trailer, each followed by CRLF, so that
// the space may move while it grows; they are parsed when the last has come.
func (b *body) trailerDone() error {
	if n := len(b.trailer); n > 0 && (n < 2 || b.trailer[n-1] != '\n') {
		b.trailer = append(b.trailer, '\r', '\n')
		b.fields++
		if b.fields > b.limits.Fields {
			return &Error{Status: 431, Reason: "too many trailer fields"}
		}
		b.state = trailerLine
		return nil
	}
	c := common{minor: 1}
	for rest := b.trailer; len(rest) > 0; {
		var line []byte
		line, rest = cutLine(rest)
		b.parsed = append(b.parsed, Field{})
		f := &b.parsed[len(b.parsed)-1]
		if err := c.field(line, f); err != nil {
			return err
		}
		if !f.Kind.inTrailer() {
			return bad("trailer has a field that must stand in the head")
		}
	}
	b.done = true
	return nil
}
