package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh"
)

func newProxy(env *Env) *cobra.Command {
	port := 8001
	c := &cobra.Command{
		Use:   "proxy",
		Short: "Open the mesh's API on a loopback port, for kubectl and browsers",
		Long: "Open the mesh's API on a loopback port until interrupted. kubectl then works against the mesh:\n\n" +
			"  kubectl --server http://127.0.0.1:8001 get virtualservices\n\n" +
			"/metrics is what Prometheus would scrape from mixer.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runProxy(c.Context(), env, port) },
	}
	c.Flags().IntVar(&port, "port", port, "port on 127.0.0.1; 0 takes a free one")
	return c
}

func runProxy(ctx context.Context, env *Env, port int) error {
	planes := map[mesh.Role]*peer{}
	for _, role := range apiPlanes {
		p, err := env.plane(ctx, role)
		if err != nil {
			return err
		}
		planes[role] = p
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("%w; choose another port with --port", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", joinAPIs(planes))
	mux.Handle("GET /metrics", passTo(planes[mesh.RoleMixer]))
	server := &http.Server{Handler: localOnly(mux), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintf(env.Out, "Serving the mesh's API on http://%s\n", l.Addr())
	return lifecycle.Run(ctx,
		func(context.Context) error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		func(ctx context.Context) error {
			<-ctx.Done()
			return server.Close()
		})
}

func passTo(p *peer) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "localhost"})
		},
		FlushInterval: -1, // watches are streams
		Transport:     p.http.Transport,
	}
}

// localOnly admits only requests that name a loopback host, and no page of another origin, not even of another port of
// this machine: a browser would otherwise lend any page its way to the mesh (DNS rebinding, cross-site requests).
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		if !loopbackHost(r.Host) || origin != "" && origin != "http://"+r.Host {
			http.Error(w, "meshctl proxy serves this machine only: Host must be localhost or 127.0.0.1, and an Origin its own", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func loopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
