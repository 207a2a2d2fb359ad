// Caller is what runs in the containers of the tests: it asks the keeper once and prints status and answer.
// Usage: caller SOCKET METHOD PATH [BODY]; GET prints the first line only, and "wait" sleeps until a signal ends it.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if os.Args[1] == "wait" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		<-ctx.Done()
		return
	}
	socket, method, path := os.Args[1], os.Args[2], os.Args[3]
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequest(method, "http://keeper"+path, strings.NewReader(strings.Join(os.Args[4:], "")))
	if err != nil {
		fail(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		fail(err)
	}
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		fail(err)
	}
	fmt.Println(resp.StatusCode, line)
}

func fail(err error) {
	fmt.Println(err)
	os.Exit(1)
}
