package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// child is a run of docker compose on the project with its override.
type child struct {
	project compose.Options
	global  []string // flags before the command
	args    []string // the command's own
}

// newChild is a command that takes all flags of docker compose's command of its name.
func newChild(env *Env, use, short string, run func(context.Context, *Env, child) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short,
		Long:               short + ".\n\nIt takes the flags of docker compose, those before its command too: -f, --profile, --env-file, ….",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
				return c.Help()
			}
			ch, err := splitArgs(env, args)
			if err != nil {
				return withCode(exitUsage, fmt.Errorf("%w; see %s --help", err, c.CommandPath()))
			}
			return run(c.Context(), env, ch)
		},
	}
}

// globalFlags are the flags of docker compose that stand before its command, each with a value; the last four choose
// the project.
var globalFlags = []string{"--profile", "--ansi", "--progress", "--parallel", "--project-directory", "--env-file", "--project-name", "--file"}

// splitArgs takes docker compose's global flags out of args.
func splitArgs(env *Env, args []string) (child, error) {
	var c child
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			c.args = append(c.args, args[i:]...)
			break
		}
		name, v, joined := strings.Cut(arg, "=")
		for short, long := range map[string]string{"-f": "--file", "-p": "--project-name"} {
			if rest, ok := strings.CutPrefix(arg, short); ok && !strings.HasPrefix(arg, "--") {
				name, v, joined = long, strings.TrimPrefix(rest, "="), rest != ""
			}
		}
		if !slices.Contains(globalFlags, name) {
			c.args = append(c.args, arg)
			continue
		}
		if !joined {
			if i++; i == len(args) {
				return c, fmt.Errorf("flag %s needs a value", name)
			}
			v = args[i]
		}
		switch name {
		case "--file":
			c.project.Files = append(c.project.Files, v)
			continue
		case "--project-name":
			env.Project = v
		case "--project-directory":
			c.project.ProjectDir = v
		case "--env-file":
			c.project.EnvFiles = append(c.project.EnvFiles, v)
		}
		c.global = append(c.global, name, v)
	}
	return c, nil
}

func composeUp(ctx context.Context, env *Env, c child) error {
	if err := checkCompose(ctx, env); err != nil {
		return err
	}
	_, res, err := reinject(ctx, env, c.project, nil)
	if err != nil {
		return err
	}
	if err := loadImages(ctx, env); err != nil {
		return err
	}
	if res.External != "" {
		if _, err := installedMesh(ctx, env, res.External); err != nil {
			return err
		}
	}
	return runCompose(ctx, env, slices.Concat(c.global, res.Flags, []string{"up"}, c.args))
}

// composeDown takes the sidecars of inactive profiles down too, which a run of such a service leaves behind.
func composeDown(ctx context.Context, env *Env, c child) error {
	if err := checkCompose(ctx, env); err != nil {
		return err
	}
	source, err := loadProject(ctx, env, c.project)
	if err != nil {
		return err
	}
	return runCompose(ctx, env, slices.Concat(c.global, source.Flags(source.Written()), []string{"--profile", "*", "down"}, c.args))
}

// composePort asks the sandbox, which publishes the service's ports.
func composePort(ctx context.Context, env *Env, c child) error {
	if err := checkCompose(ctx, env); err != nil {
		return err
	}
	source, err := loadProject(ctx, env, c.project)
	if err != nil {
		return err
	}
	warnStale(env, source)
	f := pflag.NewFlagSet("port", pflag.ContinueOnError)
	index := f.Int("index", 0, "")
	protocol := f.String("protocol", "tcp", "")
	if err := f.Parse(c.args); err != nil || f.NArg() != 2 {
		return withCode(exitUsage, errors.Join(err, errors.New("want SERVICE and PORT")))
	}
	service, port := f.Arg(0), f.Arg(1)
	workload := service
	if *index > 1 {
		workload += "-" + strconv.Itoa(*index)
	}
	list, err := projectContainers(ctx, env, source.Name)
	if err != nil {
		return err
	}
	target, args := service, []string{"port", "--protocol", *protocol}
	if slices.ContainsFunc(list, func(s container.Summary) bool {
		return s.Labels[labels.Role] == string(mesh.RoleSandbox) && s.Labels[composeService] == workload+"-mesh-sandbox"
	}) {
		target = workload + "-mesh-sandbox"
	} else if *index > 0 {
		args = append(args, "--index", strconv.Itoa(*index))
	}
	return runCompose(ctx, env, slices.Concat(c.global, source.Flags(source.Written()), args, []string{target, port}))
}

// loadProject loads a project, with the loader's warnings as notes.
func loadProject(ctx context.Context, env *Env, o compose.Options) (source *compose.Source, err error) {
	err = quietly(env, func() (err error) {
		source, err = compose.Load(ctx, env.projectOptions(o))
		return err
	})
	return source, err
}

// reinject injects with the flags that the project's override remembers, those of a first inject if there is none, and
// writes the result. change may change them.
func reinject(ctx context.Context, env *Env, project compose.Options, change func(*injectOptions)) (*compose.Source, *compose.Result, error) {
	source, err := loadProject(ctx, env, project)
	if err != nil {
		return nil, nil, err
	}
	path, h := source.Written()
	o := &injectOptions{}
	f := pflag.NewFlagSet("inject", pflag.ContinueOnError)
	o.addConfig(f)
	if err := f.Parse(h.Flags); err != nil {
		return nil, nil, fmt.Errorf("%s: x-composure.flags: %w; run meshctl compose inject", path, err)
	}
	o.project = project
	if base := filepath.Base(path); path != "" && base != "compose.override.yaml" && base != "compose.mesh.yaml" {
		o.config.Out = path
	}
	if change != nil {
		change(o)
	}
	if err := o.complete(); err != nil {
		return nil, nil, err
	}
	res, err := makeOverride(ctx, env, o)
	if err != nil {
		return nil, nil, err
	}
	if changed, err := res.Write(); err != nil {
		return nil, nil, err
	} else if changed {
		env.talk("wrote %s", res.Path)
	}
	return source, res, nil
}

// warnStale says that the override was made from files that have changed since.
func warnStale(env *Env, source *compose.Source) {
	path, h := source.Written()
	if path == "" {
		return
	}
	if file := source.Stale(path, h); file != "" {
		env.talk("warning: %s is stale: %s has changed since it was written; run `meshctl compose up -d`, or `%s` and docker compose up",
			path, file, strings.Join(append([]string{"meshctl compose inject"}, h.Flags...), " "))
	}
}

// composeProgram is docker compose, or the one that COMPOSURE_COMPOSE names.
func composeProgram(env *Env) []string {
	if words := strings.Fields(env.Getenv("COMPOSURE_COMPOSE")); len(words) > 0 {
		return words
	}
	return []string{"docker", "compose"}
}

// checkCompose refuses a Compose that does not know !reset as the override uses it.
func checkCompose(ctx context.Context, env *Env) error {
	program := composeProgram(env)
	out, err := exec.CommandContext(ctx, program[0], append(program[1:], "version", "--short")...).Output()
	if err != nil {
		return fmt.Errorf("%s version: %w; meshctl needs Docker Compose 2.24.4 or later", strings.Join(program, " "), err)
	}
	if version := strings.TrimSpace(string(out)); !recentCompose(version) {
		return fmt.Errorf("%s is version %s, want 2.24.4 or later: older ones do not reset the fields that move to the sandboxes", strings.Join(program, " "), version)
	}
	return nil
}

// recentCompose reports whether a version is 2.24.4 or later; one that is no version is taken for a build of one's own.
func recentCompose(version string) bool {
	version, _, _ = strings.Cut(strings.TrimPrefix(version, "v"), "-")
	version, _, _ = strings.Cut(version, "+")
	var have []int
	for part := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return true
		}
		have = append(have, n)
	}
	return slices.Compare(have, []int{2, 24, 4}) >= 0
}

// runCompose runs docker compose with our standard streams; its exit code is ours.
func runCompose(ctx context.Context, env *Env, args []string) error {
	return runComposeOn(ctx, env, env.In, env.Out, args)
}

func runComposeOn(ctx context.Context, env *Env, in io.Reader, out io.Writer, args []string) error {
	program := composeProgram(env)
	cmd := exec.CommandContext(ctx, program[0], append(program[1:], args...)...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = env.Dir, in, out, env.Err
	cmd.Cancel = func() error {
		if terminal(env) {
			return nil // which has sent the signal to both of us: a second one would end up without a stop
		}
		return cmd.Process.Signal(os.Interrupt)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return withCode(exit.ExitCode(), fmt.Errorf("%s: %w", strings.Join(program, " "), err))
	}
	return err
}

func terminal(env *Env) bool {
	f, ok := env.In.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// projectContainers are the containers of a compose project, those that have ended too.
func projectContainers(ctx context.Context, env *Env, project string) ([]container.Summary, error) {
	engine, err := env.Engine(ctx)
	if err != nil {
		return nil, err
	}
	list, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", composeProject+"="+project))})
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("list containers: %w", err))
	}
	return list, nil
}
