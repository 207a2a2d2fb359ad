package http1

import "strconv"

// AppendRequestLine appends "METHOD target HTTP/1.1" and the line end.
func AppendRequestLine(dst, method, target []byte) []byte {
	dst = append(dst, method...)
	dst = append(dst, ' ')
	dst = append(dst, target...)
	return append(dst, " HTTP/1.1\r\n"...)
}

// AppendStatusLine appends "HTTP/1.1 status reason" and the line end.
func AppendStatusLine(dst []byte, status int, reason []byte) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	return append(dst, '\r', '\n')
}

// AppendField appends a field line. The caller vouches for name and value.
func AppendField[N, V []byte | string](dst []byte, name N, value V) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, '\r', '\n')
}

// MaxChunkHead is the space that AppendChunkHead needs at most.
const MaxChunkHead = 16 + 2

// AppendChunkHead appends the size line of a chunk of n bytes.
func AppendChunkHead(dst []byte, n int) []byte {
	dst = strconv.AppendInt(dst, int64(n), 16)
	return append(dst, '\r', '\n')
}

// AppendLastChunk appends the chunk that ends a body, with its trailers.
func AppendLastChunk(dst []byte, trailer Header) []byte {
	dst = append(dst, '0', '\r', '\n')
	for i := range trailer {
		dst = AppendField(dst, trailer[i].Name, trailer[i].Value)
	}
	return append(dst, '\r', '\n')
}
