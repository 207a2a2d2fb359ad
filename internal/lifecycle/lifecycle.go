// Package lifecycle runs the long jobs of a process together.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Task is a long job: it runs until ctx is done or it can't go on.
type Task func(ctx context.Context) error

// Run runs tasks until all have returned. The first that fails cancels the others, and its error is the
// result; a panic becomes an error. A task that ends because ctx was cancelled has not failed.
func Run(ctx context.Context, tasks ...Task) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	for _, task := range tasks {
		wg.Go(func() {
			err := guard(ctx, task)
			if err == nil || errors.Is(err, context.Canceled) && ctx.Err() != nil {
				return
			}
			once.Do(func() { first = err; cancel(err) })
		})
	}
	wg.Wait()
	return first
}

func guard(ctx context.Context, task Task) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return task(ctx)
}
