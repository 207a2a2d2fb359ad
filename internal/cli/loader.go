package cli

import (
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// loaderTalk collects what Compose's loader logs. It knows the standard logger of logrus only, and says the same of
// each file and each load.
type loaderTalk struct {
	mu    sync.Mutex
	lines []string
}

// Levels is part of logrus.Hook.
func (*loaderTalk) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel}
}

// Fire is part of logrus.Hook.
func (l *loaderTalk) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.lines, e.Message) {
		l.lines = append(l.lines, e.Message)
	}
	return nil
}

// habits are what the loader says about style, which has nothing to do with the mesh: docker compose says it again.
var habits = []string{"is obsolete", "is deprecated", "is not supported by YAML 1.2", "Found multiple", "Using "}

// loadGCPercent lets the heap grow fivefold before it is collected: a load of a big project makes garbage for a second
// and ends, and collecting it as often as usual costs a third of that.
const loadGCPercent = 400

// quietly runs f, which loads a project, and turns what the loader logs into notes, each once.
func quietly(env *Env, f func() error) error {
	talk := &loaderTalk{}
	std := logrus.StandardLogger()
	hooks := logrus.LevelHooks{}
	hooks.Add(talk)
	hooks, out := std.ReplaceHooks(hooks), std.Out
	std.SetOutput(io.Discard)
	percent := debug.SetGCPercent(loadGCPercent)
	err := f()
	debug.SetGCPercent(percent)
	std.SetOutput(out)
	std.ReplaceHooks(hooks)
	for _, line := range talk.lines {
		if !slices.ContainsFunc(habits, func(h string) bool { return strings.Contains(line, h) }) {
			env.talk("note: %s", line)
		}
	}
	return err
}
