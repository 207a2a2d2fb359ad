package limit

import (
	"strconv"
	"testing"
	"time"
)

func TestPerCaller(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	l := PerCaller{Rate: 1, Burst: 20}
	for i := range l.Burst {
		if !l.Allow("a", now) {
			t.Fatalf("request %d refused", i)
		}
	}
	if l.Allow("a", now) {
		t.Error("no limit")
	}
	if !l.Allow("b", now) {
		t.Error("one caller's limit is another's")
	}
	now = now.Add(time.Second)
	if !l.Allow("a", now) || l.Allow("a", now) {
		t.Error("want one request a second")
	}
	for i := range 3 * maxCallers {
		l.Allow(strconv.Itoa(i), now)
		now = now.Add(100 * time.Millisecond)
	}
	if n := len(l.each); n > maxCallers+1 {
		t.Errorf("%d limiters are kept, want at most %d", n, maxCallers)
	}
}
