// Package dns answers the application's questions for names of the mesh, and passes all others on to Docker's resolver
// untouched.
package dns

import (
	"errors"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// Names tells what a name means.
type Names interface {
	// Resolve is the addresses of a name, in lower case and without the final dot. A name of the mesh may have none. They
	// must not be changed.
	Resolve(name []byte) ([]netip.Addr, Meaning)
}

// Meaning is whose a name is.
type Meaning int

// The meanings. A Fallback is ours where Docker's resolver does not know the name.
const (
	Unknown Meaning = iota
	Known
	Fallback
)

const (
	// ttl is how long an answer may be kept, in seconds: Istio's.
	ttl = 30
	// Sizes of messages over UDP: what every client takes (RFC 1035 section 4.2.1), and what we say that we take.
	minSize = 512
	ownSize = 4096
	// maxMessage is the largest message, which a length of 16 bits bounds.
	maxMessage = 65535
	// typeSVCB is the type beside HTTPS (RFC 9460): both may carry addresses that lead past the mesh.
	typeSVCB, typeHTTPS = dnsmessage.Type(64), dnsmessage.Type(65)
)

// Answer is the answer to a query, at most limit bytes long: nil where it is none of ours to answer. limit is 0 over UDP, where
// the client says what it takes; what does not fit is cut off and marked so, and the client asks again over TCP. turn says
// which of the addresses comes first: most clients take that one.
func Answer(query []byte, names Names, limit int, turn uint32) []byte {
	return answer(query, names, limit, turn, Known)
}

// answer is the answer to a query for a name of the wanted meaning.
func answer(query []byte, names Names, limit int, turn uint32, want Meaning) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response || head.OpCode != 0 {
		return nil
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET {
		return nil
	}
	switch q.Type {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeALL, typeSVCB, typeHTTPS:
	default:
		return nil
	}
	var buf [maxName]byte
	addresses, meaning := names.Resolve(lower(buf[:0], q.Name))
	if meaning != want {
		return nil
	}
	size, edns, ok := sizeOf(&p)
	if !ok {
		return nil
	}
	if limit == 0 {
		limit = size
	}
	return build(head, q, addresses, turn, limit, edns)
}

// lower appends a name in lower case and without its final dot.
func lower(dst []byte, name dnsmessage.Name) []byte {
	for _, c := range name.Data[:name.Length] {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	if n := len(dst); n > 0 && dst[n-1] == '.' {
		dst = dst[:n-1]
	}
	return dst
}

// sizeOf reads what follows the question: how large an answer may be, and whether the client speaks EDNS (RFC 6891). It is
// not ok where that is another version, or the message holds more than one question.
func sizeOf(p *dnsmessage.Parser) (size int, edns, ok bool) {
	if !errors.Is(p.SkipQuestion(), dnsmessage.ErrSectionDone) || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return 0, false, false
	}
	size = minSize
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return size, edns, true
		}
		if err != nil {
			return 0, false, false
		}
		if h.Type == dnsmessage.TypeOPT {
			if version := byte(h.TTL >> 16); version != 0 {
				return 0, false, false
			}
			edns, size = true, max(int(h.Class), minSize)
		}
		if p.SkipAdditional() != nil {
			return 0, false, false
		}
	}
}

func build(head dnsmessage.Header, q dnsmessage.Question, addresses []netip.Addr, turn uint32, limit int, edns bool) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, minSize), dnsmessage.Header{
		ID: head.ID, Response: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true, Authoritative: true,
	})
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(q)
	}
	if err == nil {
		err = b.StartAnswers()
	}
	room := limit - headerSize - int(q.Name.Length) - 1 - 4
	if edns {
		room -= optSize
	}
	cut := false
	for i := range addresses {
		a := addresses[(uint64(turn)+uint64(i))%uint64(len(addresses))]
		if err != nil {
			return nil
		}
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}
		wanted, size := q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeALL, recordSize+4
		if a.Is6() {
			wanted, size = q.Type == dnsmessage.TypeAAAA || q.Type == dnsmessage.TypeALL, recordSize+16
		}
		switch room -= size; {
		case !wanted:
			room += size
		case room < 0:
			cut = true
		case a.Is4():
			err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
		default:
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if cut {
			break
		}
	}
	if edns && err == nil {
		var h dnsmessage.ResourceHeader
		if err = b.StartAdditionals(); err == nil {
			err = h.SetEDNS0(ownSize, dnsmessage.RCodeSuccess, false)
		}
		if err == nil {
			err = b.OPTResource(h, dnsmessage.OPTResource{})
		}
	}
	if err != nil {
		return nil
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	if cut {
		out[2] |= truncated
	}
	return out
}

const (
	maxName    = 255
	headerSize = 12
	recordSize = 2 + 2 + 2 + 4 + 2 // a record without its data, its name a pointer to the question's
	optSize    = 1 + 2 + 2 + 4 + 2
	truncated  = 1 << 1 // TC, in the third byte of the header
)
