package http2

import "sync"

// buffer holds what has arrived of a body and was not read yet. Its space comes from pools, grows by four, and goes
// back as soon as it is empty: a stream that waits costs none.
type buffer struct {
	space []byte
	r, w  int
}

const (
	smallSpace  = 4 << 10
	mediumSpace = 16 << 10
	largeSpace  = 64 << 10
)

var (
	smallPool  = sync.Pool{New: func() any { return new([smallSpace]byte) }}
	mediumPool = sync.Pool{New: func() any { return new([mediumSpace]byte) }}
	largePool  = sync.Pool{New: func() any { return new([largeSpace]byte) }}
)

func getSpace(n int) []byte {
	switch {
	case n <= smallSpace:
		return smallPool.Get().(*[smallSpace]byte)[:]
	case n <= mediumSpace:
		return mediumPool.Get().(*[mediumSpace]byte)[:]
	case n <= largeSpace:
		return largePool.Get().(*[largeSpace]byte)[:]
	}
	return make([]byte, n)
}

func putSpace(b []byte) {
	switch cap(b) {
	case smallSpace:
		smallPool.Put((*[smallSpace]byte)(b[:smallSpace]))
	case mediumSpace:
		mediumPool.Put((*[mediumSpace]byte)(b[:mediumSpace]))
	case largeSpace:
		largePool.Put((*[largeSpace]byte)(b[:largeSpace]))
	}
}

func (b *buffer) len() int { return b.w - b.r }

func (b *buffer) write(p []byte) {
	if need := b.len() + len(p); need > len(b.space) {
		grown := getSpace(max(need, min(4*len(b.space), largeSpace)))
		b.w = copy(grown, b.space[b.r:b.w])
		b.r = 0
		putSpace(b.space)
		b.space = grown
	} else if b.w+len(p) > len(b.space) {
		b.w = copy(b.space, b.space[b.r:b.w])
		b.r = 0
	}
	b.w += copy(b.space[b.w:], p)
}

func (b *buffer) read(p []byte) int {
	n := copy(p, b.space[b.r:b.w])
	if b.r += n; b.r == b.w {
		b.release()
	}
	return n
}

func (b *buffer) release() {
	putSpace(b.space)
	*b = buffer{}
}
