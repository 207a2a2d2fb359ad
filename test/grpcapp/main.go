// Grpcapp is a gRPC server and client for tests: "serve" answers on port 50051 with the name in NAME, "call ADDRESS N" makes
// N calls over one connection and prints who answered each, "stream ADDRESS" has a stream that goes both ways.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx)
	case len(args) == 3 && args[0] == "call":
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return client(ctx, args[1], func(ctx context.Context, c testgrpc.TestServiceClient) error {
			for range n {
				r, err := c.UnaryCall(ctx, &testgrpc.SimpleRequest{})
				if err != nil {
					return err
				}
				fmt.Println(r.GetServerId())
			}
			return nil
		})
	case len(args) == 2 && args[0] == "stream":
		return client(ctx, args[1], func(ctx context.Context, c testgrpc.TestServiceClient) error {
			interop.DoPingPong(ctx, c) // ends the program where it fails
			fmt.Println("streamed")
			return nil
		})
	}
	return errors.New("usage: grpcapp serve | call ADDRESS N | stream ADDRESS")
}

// named is gRPC's test service with a name.
type named struct {
	testgrpc.TestServiceServer
}

func (named) UnaryCall(context.Context, *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	return &testgrpc.SimpleResponse{ServerId: os.Getenv("NAME")}, nil
}

func serve(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", ":50051")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, named{interop.NewTestServer()})
	defer context.AfterFunc(ctx, s.GracefulStop)()
	return s.Serve(ln)
}

func client(ctx context.Context, addr string, f func(context.Context, testgrpc.TestServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it has served
	return f(ctx, testgrpc.NewTestServiceClient(conn))
}
