package component

import (
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestDialWaits: a socket that is not there yet is waited for, and not forever.
func TestDialWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if _, err := dial(t.Context(), "unix", path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want that there is no such socket", err)
		}
		if waited := time.Since(start); waited < dialPatience || waited > dialPatience+time.Second {
			t.Errorf("waited for %v, want %v", waited, dialPatience)
		}
		listening := make(chan net.Listener, 1)
		time.AfterFunc(time.Second, func() {
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Error(err)
			}
			listening <- ln
		})
		conn, err := dial(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		_ = (<-listening).Close()
	})
}
