package http1

import "time"

// Response is a parsed response head. Its slices are valid until the next message is parsed.
type Response struct {
	Status    int
	Reason    []byte
	Minor     int
	Header    Header
	Framing   Framing
	Length    int64
	KeepAlive bool
	WebSocket bool // a 101 that switches to websocket
	// IdleTimeout is what a Keep-Alive field says of how long the peer keeps an idle connection; 0 if it says nothing.
	IdleTimeout time.Duration
}

// parse fills p from a head, of which the last, empty line is cut off. toHead says that the request was HEAD.
func (p *Response) parse(head []byte, toHead bool, lim *Limits) *Error {
	h := p.Header[:0]
	*p = Response{Header: h}
	line, rest := cutLine(head)
	if err := p.statusLine(line); err != nil {
		return err
	}
	c := common{minor: p.Minor}
	for len(rest) > 0 {
		line, rest = cutLine(rest)
		if len(h) == lim.Fields {
			return bad("too many header fields")
		}
		h = append(h, Field{})
		if err := c.field(line, &h[len(h)-1]); err != nil {
			p.Header = h
			return err
		}
	}
	p.Header = h
	if err := c.framing(); err != nil {
		return err
	}
	if err := c.nominations(h); err != nil {
		return err
	}
	p.KeepAlive = c.wantsKeepAlive()
	p.IdleTimeout = c.idle
	p.WebSocket = p.Status == 101 && c.upgrade && c.websocket
	switch {
	case toHead, p.Status < 200, p.Status == 204, p.Status == 304:
	case c.chunked:
		p.Framing = Chunked
	case c.lengths == 1 && c.length == 0:
	case c.lengths == 1:
		p.Framing, p.Length = Length, c.length
	default:
		p.Framing = UntilClose
		p.KeepAlive = false
	}
	return nil
}

func (p *Response) statusLine(line []byte) *Error {
	if len(line) < 12 || line[8] != ' ' {
		return bad("status line is not version, status and reason")
	}
	minor, err := parseVersion(line[:8])
	if err != nil {
		return err
	}
	p.Minor = minor
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return bad("status is not a number")
		}
		p.Status = p.Status*10 + int(c-'0')
	}
	if p.Status < 100 {
		return bad("status is below 100")
	}
	if len(line) > 12 {
		if line[12] != ' ' {
			return bad("status line is not version, status and reason")
		}
		p.Reason = line[13:]
	}
	if !all(p.Reason, isValue) {
		return bad("reason has a control character")
	}
	return nil
}
