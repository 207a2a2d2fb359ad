package lifecycle

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func waits(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestFirstErrorEndsTheOthers(t *testing.T) {
	broken := errors.New("broken")
	got := Run(t.Context(), waits, func(context.Context) error { return broken }, waits)
	if !errors.Is(got, broken) {
		t.Errorf("got %v, want %v", got, broken)
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	got := Run(t.Context(), waits, func(context.Context) error { panic("lost") })
	if got == nil || !strings.Contains(got.Error(), "panic: lost") || !strings.Contains(got.Error(), "lifecycle_test.go") {
		t.Errorf("got %v, want the panic and where it was", got)
	}
}

func TestCancelIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, waits, waits); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestOneThatEndsEndsNoOther(t *testing.T) {
	ended := make(chan struct{})
	err := Run(t.Context(),
		func(context.Context) error { close(ended); return nil },
		func(ctx context.Context) error {
			<-ended
			return ctx.Err()
		})
	if err != nil {
		t.Errorf("got %v, want nil", err)
	}
}
