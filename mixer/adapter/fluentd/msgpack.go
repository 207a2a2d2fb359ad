package fluentd

import (
	"encoding/binary"
	"math"
	"time"
)

// What is needed of MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md), in its widest forms.

func array(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n)) }

func object(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(append(b, 0xdf), uint32(n)) }

func text(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(len(s))), s...)
}

func integer(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(n))
}

func double(b []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(f))
}

func boolean(b []byte, v bool) []byte {
	if v {
		return append(b, 0xc3)
	}
	return append(b, 0xc2)
}

// eventTime is the protocol's own type: seconds and nanoseconds.
func eventTime(b []byte, t time.Time) []byte {
	b = binary.BigEndian.AppendUint32(append(b, 0xd7, 0x00), uint32(t.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
}
