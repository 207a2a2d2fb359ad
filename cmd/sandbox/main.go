//go:build linux

// Command sandbox owns a workload's network namespace: it programs the capture rules as its first act, gives up
// every privilege, and then holds the capture listeners for the proxy.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/sandbox"
)

func main() {
	component.Main("sandbox", map[string]component.Command{"": run, "rules": rules, "check": check})
}

// run programs the rules and serves until ctx ends.
func run(ctx context.Context, log *slog.Logger, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q: want no argument, or one of the commands rules, check, version", args[0])
	}
	// Before everything else: an application that starts at the same moment must find no open namespace.
	if err := sandbox.CloseGate(); err != nil {
		log.Warn("the namespace is open until the capture rules are in force", "error", err)
	}
	opts, err := optionsFromEnv(os.Getenv)
	if err != nil {
		return err
	}
	server, err := sandbox.Listen(sandbox.Config{Grace: sandbox.DefaultGrace, Log: log})
	if err != nil {
		return err
	}
	defer server.Close()
	names, err := sandbox.ListenDNS(log)
	if err != nil {
		return err
	}
	defer names.Close()
	opts.IPv6 = ipv6Mode(server.DualStack())
	if err := program(ctx, opts, log); err != nil {
		return err
	}
	if err := sandbox.OpenGate(); err != nil {
		return err
	}
	if err := server.SelfTest(ctx); err != nil {
		return err
	}
	if err := sandbox.DropPrivileges(); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	debug.FreeOSMemory() // programming is over, and the process may now sit for months
	log.Info("the namespace is protected; waiting for the proxy")
	return lifecycle.Run(ctx, server.Run, names.Run, sandbox.Reap)
}

// rules programs the rules again, or with --dry-run shows them in the syntax of iptables-save and changes nothing.
func rules(ctx context.Context, log *slog.Logger, args []string) error {
	dryRun := len(args) == 1 && args[0] == "--dry-run"
	if len(args) > 0 && !dryRun {
		return fmt.Errorf("rules: unexpected argument %q: want none or --dry-run", args[0])
	}
	opts, err := optionsFromEnv(os.Getenv)
	if err != nil {
		return err
	}
	if dryRun {
		opts.IPv6 = sandbox.IPv6Capture
		_, err := fmt.Print(sandbox.Plan(opts))
		return err
	}
	opts.IPv6 = ipv6Mode(true)
	return program(ctx, opts, log)
}

// check reads the rules back and makes a connection through them. It needs the privileges that the sandbox has
// given up, as an exec in its container has them.
func check(ctx context.Context, _ *slog.Logger, _ []string) error {
	opts, err := optionsFromEnv(os.Getenv)
	if err != nil {
		return err
	}
	nf, err := sandbox.Open(ctx)
	if err != nil {
		return err
	}
	if err := nf.VerifyPlan(opts, ipv6Mode(true)); err != nil {
		return err
	}
	conn, err := sandbox.DialSelfTest(ctx)
	if err != nil {
		return err
	}
	_ = conn.Close()
	fmt.Printf("capture is in force (iptables-%s)\n", nf.Backend)
	return nil
}

func program(ctx context.Context, opts sandbox.Options, log *slog.Logger) error {
	nf, err := sandbox.Open(ctx)
	if err != nil {
		return err
	}
	mode, err := nf.Program(ctx, opts, log)
	if err != nil {
		return err
	}
	log.Info("capture rules are in force", "backend", nf.Backend, "ipv6", mode)
	return nil
}

// ipv6Mode is what the namespace's kernel and our listeners allow.
func ipv6Mode(listening bool) sandbox.IPv6Mode {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return sandbox.IPv6Off // the kernel has no IPv6; an interface without an address still shows the file
	}
	if !listening {
		return sandbox.IPv6Reject
	}
	return sandbox.IPv6Capture
}
