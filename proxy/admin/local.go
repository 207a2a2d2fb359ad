package admin

import (
	"errors"
	"net"
	"net/http"
	"net/netip"

	"github.com/composure-mesh/composure/internal/httpx"
)

// localOnly refuses what a web page can make a browser send: a request with an Origin, or to a name that resolves to
// loopback by an attacker's DNS.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(host)
		if host != "localhost" && (err != nil || !ip.IsLoopback()) || r.Header.Get("Origin") != "" {
			httpx.Error(w, http.StatusForbidden, errors.New("the admin port is for local tools: use 127.0.0.1 or localhost"))
			return
		}
		next.ServeHTTP(w, r)
	})
}
