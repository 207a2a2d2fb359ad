package http1

import "sync"

// Buffers come in a few sizes. Pointers to arrays are pooled, so that neither taking nor giving back allocates.
const (
	smallBuffer = 4 << 10
	largeBuffer = 16 << 10
	// CopySize is the size of the buffers that bodies are copied through.
	CopySize = 32 << 10
)

var (
	smallPool = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largePool = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	copyPool  = sync.Pool{New: func() any { return new([CopySize]byte) }}
)

// GetBuffer takes a buffer of CopySize; PutBuffer gives it back.
func GetBuffer() *[CopySize]byte { return copyPool.Get().(*[CopySize]byte) }

// PutBuffer gives back what GetBuffer took.
func PutBuffer(b *[CopySize]byte) { copyPool.Put(b) }

// getBuffer takes a buffer of at least n bytes.
func getBuffer(n int) []byte {
	switch {
	case n <= smallBuffer:
		return smallPool.Get().(*[smallBuffer]byte)[:]
	case n <= largeBuffer:
		return largePool.Get().(*[largeBuffer]byte)[:]
	default:
		return make([]byte, n)
	}
}

func putBuffer(b []byte) {
	switch cap(b) {
	case smallBuffer:
		smallPool.Put((*[smallBuffer]byte)(b[:smallBuffer]))
	case largeBuffer:
		largePool.Put((*[largeBuffer]byte)(b[:largeBuffer]))
	}
}
