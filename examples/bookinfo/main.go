// Bookinfo is the lecture's application: a page about a book that is put together by four services, three versions of
// one of them. URLs, headers, JSON and texts are those of Istio's sample of the same name
// (https://istio.io/latest/docs/examples/bookinfo/), so that what is written about that one holds for this one.
//
// One binary holds all four; the first argument says which one to be.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// port is where every service listens, and dials the others unless the environment says otherwise.
const port = "9080"

// stopGrace is what open requests get to finish after SIGTERM; Docker waits 10 s before it kills.
const stopGrace = 8 * time.Second

// services are what this binary can be, each made from the environment.
var services = map[string]func(getenv func(string) string) http.Handler{
	"productpage": func(getenv func(string) string) http.Handler {
		return newProductpage(productpageConfig{
			Details: baseURL(getenv, "details"),
			Reviews: baseURL(getenv, "reviews"),
			Ratings: baseURL(getenv, "ratings"),
			Client:  newClient(),
		})
	},
	"details": func(func(string) string) http.Handler { return newDetails() },
	"reviews": func(getenv func(string) string) http.Handler {
		return newReviews(reviewsConfig{
			EnableRatings: getenv("ENABLE_RATINGS") == "true",
			StarColor:     cmp.Or(getenv("STAR_COLOR"), "black"),
			PodName:       getenv("HOSTNAME"),
			ClusterName:   cmp.Or(getenv("CLUSTER_NAME"), "null"),
			Ratings:       baseURL(getenv, "ratings"),
			Client:        newClient(),
		})
	},
	"ratings": func(func(string) string) http.Handler { return newRatings() },
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, log, os.Args[1:], os.Getenv)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bookinfo:", err)
		os.Exit(1)
	}
}

// run is the program: one service, or "check", which asks the service in this container whether it is well.
func run(ctx context.Context, log *slog.Logger, args []string, getenv func(string) string) error {
	names := slices.Sorted(maps.Keys(services))
	if len(args) != 1 {
		return fmt.Errorf("%d arguments, want one of: check, %s", len(args), strings.Join(names, ", "))
	}
	if args[0] == "check" {
		return check(ctx, "http://127.0.0.1:"+port)
	}
	service, ok := services[args[0]]
	if !ok {
		return fmt.Errorf("no service %q, want one of: check, %s", args[0], strings.Join(names, ", "))
	}
	var listen net.ListenConfig
	ln, err := listen.Listen(ctx, "tcp", ":"+port)
	if err != nil {
		return err
	}
	log.Info("listening", "service", args[0], "address", ln.Addr())
	return serve(ctx, ln, logged(log, service(getenv)))
}

// serve serves until ctx is done, then lets open requests finish.
func serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute}
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Serve(ln) }()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	err := srv.Shutdown(grace)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests are open %s after the signal to stop: %w", stopGrace, err), srv.Close())
	}
	if served := <-stopped; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve %s: %w", ln.Addr(), served))
	}
	return err
}

// check asks the service at base for its health.
func check(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := get(ctx, newClient(), base+"/health", nil)
	return err
}

// baseURL is where service name is, by the variables of the original:
// <NAME>_HOSTNAME, SERVICES_DOMAIN, <NAME>_SERVICE_PORT.
func baseURL(getenv func(string) string, name string) string {
	upper := strings.ToUpper(name)
	host := cmp.Or(getenv(upper+"_HOSTNAME"), name)
	if domain := getenv("SERVICES_DOMAIN"); domain != "" {
		host += "." + domain
	}
	return "http://" + net.JoinHostPort(host, cmp.Or(getenv(upper+"_SERVICE_PORT"), port))
}

// logged writes a line for each request but the health checks.
func logged(log *slog.Logger, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			h.ServeHTTP(w, r)
			return
		}
		start := time.Now()
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		h.ServeHTTP(rec, r)
		log.Info("request", "method", r.Method, "path", r.URL.Path, "status", rec.status,
			"duration", time.Since(start).Round(time.Millisecond), "user", r.Header.Get("end-user"), "id", r.Header.Get("x-request-id"))
	})
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
