package expression

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Map is an attribute of type STRING_MAP, as request.headers.
type Map interface {
	Get(key string) (string, bool)
}

// Value is what an expression yields or an attribute has: the field that Type asks for is set.
type Value struct {
	Type  snapshot.ValueType
	Str   string // STRING, DNS_NAME, EMAIL_ADDRESS, URI
	Int   int64  // INT64; BOOL, where 1 is true; DURATION, in nanoseconds
	Float float64
	Time  time.Time
	IP    netip.Addr
	Map   Map
}

// True tells whether v is a BOOL and true.
func (v *Value) True() bool { return v.Type == snapshot.Bool && v.Int != 0 }

// Parse reads a value of a type as text, as constants have it.
func Parse(t snapshot.ValueType, s string) (Value, error) {
	v := Value{Type: t}
	var err error
	switch t {
	case snapshot.String, snapshot.DNSName, snapshot.EmailAddress, snapshot.URI:
		v.Str = s
	case snapshot.Int64:
		v.Int, err = strconv.ParseInt(s, 10, 64)
	case snapshot.Double:
		v.Float, err = strconv.ParseFloat(s, 64)
	case snapshot.Bool:
		var b bool
		b, err = strconv.ParseBool(s)
		v = boolean(b)
	case snapshot.DurationType:
		var d time.Duration
		d, err = time.ParseDuration(s)
		v.Int = int64(d)
	case snapshot.Timestamp:
		v.Time, err = parseTime(s)
	case snapshot.IPAddress:
		v.IP, err = parseIP(s)
	default:
		err = fmt.Errorf("a value of type %s has no form as text", t)
	}
	return v, err
}

// Text writes what Parse reads.
func (v *Value) Text() string {
	switch v.Type {
	case snapshot.String, snapshot.DNSName, snapshot.EmailAddress, snapshot.URI:
		return v.Str
	}
	return string(v.AppendText(nil))
}

// AppendText appends Text to b.
func (v *Value) AppendText(b []byte) []byte {
	switch v.Type {
	case snapshot.Int64:
		return strconv.AppendInt(b, v.Int, 10)
	case snapshot.Double:
		return strconv.AppendFloat(b, v.Float, 'g', -1, 64)
	case snapshot.Bool:
		return strconv.AppendBool(b, v.Int != 0)
	case snapshot.DurationType:
		return append(b, time.Duration(v.Int).String()...)
	case snapshot.Timestamp:
		return v.Time.AppendFormat(b, time.RFC3339Nano)
	case snapshot.IPAddress:
		return v.IP.AppendTo(b)
	default:
		return append(b, v.Str...)
	}
}

func boolean(b bool) Value {
	v := Value{Type: snapshot.Bool}
	if b {
		v.Int = 1
	}
	return v
}

func str(t snapshot.ValueType, s string) Value { return Value{Type: t, Str: s} }

func parseIP(s string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("could not convert %s to IP_ADDRESS", s)
	}
	return ip.Unmap(), nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("could not convert '%s' to TIMESTAMP. expected format: '%s'", s, time.RFC3339)
	}
	return t, nil
}
