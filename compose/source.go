package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/tree"
	"github.com/compose-spec/compose-go/v2/types"
)

// Options say which project to load, in the words of docker compose.
type Options struct {
	// WorkingDir is where the command runs; relative paths start there. Empty is the current directory.
	WorkingDir string
	// Files are the -f flags. Empty means what Compose does: COMPOSE_FILE, else compose.yaml and its override
	// file, looked for here and in the parent directories. "-" is Stdin.
	Files []string
	// Stdin is what the file "-" reads; nil refuses it.
	Stdin io.Reader
	// ProjectDir is --project-directory; empty is the directory of the first file.
	ProjectDir string
	// ProjectName is -p; empty means COMPOSE_PROJECT_NAME, the file's name key, the directory's name.
	ProjectName string
	// EnvFiles are the --env-file flags; empty means what Compose does: COMPOSE_ENV_FILES of the process's
	// environment, separated by commas, else .env.
	EnvFiles []string
	// Env is the process's environment, KEY=VALUE. It wins over the files.
	Env []string
}

// Source is a loaded project. It is never changed.
type Source struct {
	// Name is the project's name, Dir its directory.
	Name, Dir string
	// Files are the compose files it was made of, absolute, in order; files that meshctl wrote are not among
	// them but in Ours.
	Files, Ours []string

	workingDir string
	discovered bool   // Compose finds Files by itself
	separator  string // of COMPOSE_FILE
	config     types.ConfigDetails
	inputs     map[string][]byte // everything that was read, by absolute path
	model      map[string]any    // merged and resolved
	project    *types.Project    // the same with defaults, typed, with all profiles
	raw        map[string]any    // merged, with ${…} intact; but for rawErr it is what model is
	rawErr     error
	// strays are the fields of the model that are not known, sites where they are written.
	strays   []stray
	sites    []site
	extended bool // a service extends another
	// registrator are the environments of services whose env files have variables of Registrator's, with those.
	registrator map[string]types.MappingWithEquals
}

// Load reads a project. Its errors are Compose's own: they name the file, the service and the field.
func Load(ctx context.Context, opts Options) (*Source, error) {
	s, err := open(opts)
	if err != nil {
		return nil, err
	}
	if err := s.load(ctx, opts.ProjectName); err != nil {
		return nil, err
	}
	return s, nil
}

// open finds and reads a project's files.
func open(opts Options) (*Source, error) {
	s := &Source{inputs: map[string][]byte{}}
	var err error
	if s.workingDir, err = filepath.Abs(opts.WorkingDir); err != nil {
		return nil, fmt.Errorf("working directory %q: %w", opts.WorkingDir, err)
	}
	env, err := s.environment(s.workingDir, types.Mapping{}, opts)
	if err != nil {
		return nil, err
	}
	if err := s.selectFiles(opts.Files, opts.Stdin, env); err != nil {
		return nil, err
	}
	s.Dir = s.workingDir
	if i := slices.IndexFunc(s.Files, func(f string) bool { return f != s.abs(stdin) }); i >= 0 {
		s.Dir = filepath.Dir(s.Files[i])
	}
	if opts.ProjectDir != "" {
		s.Dir = s.abs(opts.ProjectDir)
	}
	if s.Dir != s.workingDir { // then its .env counts too, for what is not set yet
		if env, err = s.environment(s.Dir, env, opts); err != nil {
			return nil, err
		}
	}
	s.config = types.ConfigDetails{WorkingDir: s.Dir, Environment: env} // the loader adds COMPOSE_PROJECT_NAME to env
	for _, f := range s.Files {
		s.config.ConfigFiles = append(s.config.ConfigFiles, types.ConfigFile{Filename: f, Content: s.inputs[f]})
	}
	return s, nil
}

func (s *Source) abs(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(s.workingDir, p)
}

// composeEnvFiles is the variable that Compose's command takes for its --env-file flags; its loader knows nothing of it.
const composeEnvFiles = "COMPOSE_ENV_FILES"

// environment is known plus the process's environment plus the env files, the earlier winning.
func (s *Source) environment(dir string, known types.Mapping, opts Options) (types.Mapping, error) {
	flags := opts.EnvFiles
	if len(flags) == 0 {
		flags = strings.FieldsFunc(types.NewMapping(opts.Env)[composeEnvFiles], func(c rune) bool { return c == ',' })
	}
	files := make([]string, len(flags))
	for i, f := range flags {
		files[i] = s.abs(f)
	}
	o, err := cli.NewProjectOptions(nil, cli.WithWorkingDirectory(dir), cli.WithEnv(opts.Env),
		func(o *cli.ProjectOptions) error { o.Environment.Merge(known); return nil },
		cli.WithEnvFiles(files...), cli.WithDotEnv)
	if err != nil {
		return nil, fmt.Errorf("read the env files of %s: %w", dir, err)
	}
	return o.Environment, nil
}

// stdin is the name of a compose file on standard input. It counts as a file of the working directory.
const stdin = "-"

// read reads a compose file by the name that it was given.
func (s *Source) read(name string, in io.Reader) (content []byte, err error) {
	switch {
	case name != stdin:
		content, err = os.ReadFile(s.abs(name))
	case in == nil:
		err = errors.New("standard input is read by `meshctl compose inject` alone: save the file and name it with -f")
	case s.inputs[s.abs(name)] != nil:
		err = errors.New("standard input can be read once, want one -f -")
	default:
		content, err = io.ReadAll(in)
	}
	if err != nil {
		return nil, fmt.Errorf("read compose file: %w", err)
	}
	return content, nil
}

// selectFiles finds the project's files and reads them.
func (s *Source) selectFiles(flags []string, in io.Reader, env types.Mapping) error {
	s.separator = env[consts.ComposePathSeparator]
	if s.separator == "" {
		s.separator = string(os.PathListSeparator)
	}
	wanted := flags
	if len(wanted) == 0 && env[consts.ComposeFilePath] != "" {
		wanted = strings.Split(env[consts.ComposeFilePath], s.separator)
	}
	if len(wanted) == 0 {
		s.discovered = true
		if wanted = s.discover(); len(wanted) == 0 {
			return fmt.Errorf("no compose file in %s or its parents: want one of %s, or -f FILE",
				s.workingDir, strings.Join(cli.DefaultFileNames, ", "))
		}
	}
	hidden := false
	for i, f := range wanted {
		path := s.abs(f)
		content, err := s.read(f, in)
		if err != nil {
			return err
		}
		override := s.discovered && i > 0 // Compose takes one override file only: the first that is the user's
		switch _, ours := ReadHeader(content); {
		case ours:
			s.Ours = append(s.Ours, path)
		case !override || !hidden:
			s.Files = append(s.Files, path)
			s.inputs[path] = content
			hidden = override
		}
	}
	if len(s.Files) == 0 {
		return fmt.Errorf("%s is what meshctl wrote itself: want the project's own compose file", s.Ours[0])
	}
	return nil
}

// discover lists the default compose file of the working directory or the nearest parent that has one, then
// the override files beside it in Compose's order.
func (s *Source) discover() []string {
	for dir := s.workingDir; ; dir = filepath.Dir(dir) {
		if base := existing(dir, cli.DefaultFileNames); len(base) > 0 {
			return append(base[:1:1], existing(dir, cli.DefaultOverrideFileNames)...)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func existing(dir string, names []string) []string {
	var found []string
	for _, n := range names {
		if p := filepath.Join(dir, n); fileExists(p) {
			found = append(found, p)
		}
	}
	return found
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// load makes the two models.
func (s *Source) load(ctx context.Context, name string) error {
	if _, err := known(); err != nil {
		return err
	}
	explicit := true
	if name == "" {
		name = s.config.Environment[consts.ComposeProjectName]
	}
	if name == "" { // a name key in the files wins over this
		name, explicit = loader.NormalizeProjectName(filepath.Base(s.Dir)), false
	}
	named := func(o *loader.Options) { o.SetProjectName(name, explicit) }
	listen := func(o *loader.Options) { o.Listeners = append(o.Listeners, s.record) }
	config := s.config
	config.Environment = maps.Clone(config.Environment) // the loader writes to it
	var rawErr error
	var group sync.WaitGroup
	group.Go(func() { s.raw, rawErr = loader.LoadModelWithContext(ctx, config, raw, named) })
	err := func() (err error) {
		if s.model, err = loader.LoadModelWithContext(ctx, s.config, resolved, casts(s.text()...), named, listen); err != nil {
			return err
		}
		s.Name = s.config.Environment[consts.ComposeProjectName]
		if err := s.findUnknown(); err != nil {
			return err
		}
		if s.project, err = s.typed(cloned(s.model, verbatim)); err != nil {
			return err
		}
		return s.readEnvFiles()
	}()
	group.Wait()
	if err != nil {
		return fmt.Errorf("load the compose project: %w", err)
	}
	if rawErr != nil { // the name of a file that is extended or included is a variable, for one
		s.raw, s.rawErr = cloned(s.model, escape), rawErr
	}
	withoutEnvironment(s.raw)
	return nil
}

// withoutEnvironment takes the values of configs and secrets that are variables of the environment out of a model:
// Compose's loader adds them to what the files say, and refuses a config that comes with both. A secret's is no text
// to write to a file, either.
func withoutEnvironment(model map[string]any) {
	for kind, added := range map[string]string{"configs": "content", "secrets": types.SecretConfigXValue} {
		all, _ := model[kind].(map[string]any)
		for _, v := range all {
			if one, ok := v.(map[string]any); ok && one["environment"] != nil {
				delete(one, added)
			}
		}
	}
}

// called gives a load the project's name.
func (s *Source) called(o *loader.Options) { o.SetProjectName(s.Name, true) }

// typed is the last step of Compose's loading: defaults, types, and the check of all references. It takes model
// over.
func (s *Source) typed(model map[string]any) (*types.Project, error) {
	model["name"] = s.Name
	services, _ := model["services"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(services)) {
		svc, _ := services[name].(map[string]any)
		// An empty mode, such as that of a variable that is not set, is none, and Compose attaches the service to the
		// default network; but Normalize takes it for one.
		if svc["network_mode"] == "" {
			delete(svc, "network_mode")
		}
		if pid, ok := svc["pid"]; ok && pid == nil { // the schema allows it, and Normalize panics, in Compose too
			return nil, s.errorf(name, []string{"pid"}, "null, at which Compose fails: want host, service:NAME or container:NAME, or no such field")
		}
	}
	model, err := loader.Normalize(model, s.config.Environment)
	if err != nil {
		return nil, err
	}
	project, err := loader.ModelToProject(model, loader.ToOptions(&s.config, []func(*loader.Options){resolved, s.called}), s.config)
	if err != nil {
		return nil, err
	}
	for _, svc := range project.Services {
		if svc.Build != nil { // a mapping, of which Compose makes a list in any order
			slices.SortFunc(svc.Build.SSH, func(a, b types.SSHKey) int { return strings.Compare(a.ID, b.ID) })
		}
	}
	return project, nil
}

// resolved are the load options of the model that decisions are made on. It holds nothing of the env files: but for
// the variables of Registrator's, which readEnvFiles looks for, they are the application's, and may be missing still.
func resolved(o *loader.Options) {
	o.Profiles = []string{"*"}
	o.SkipNormalization = true // Source.typed does it
	o.SkipResolveEnvironment = true
}

// readEnvFiles reads the environment of services whose env files name them for Consul. A missing file is not an error
// here: Compose says so when the service is started. What is an input of such a file are these variables alone.
func (s *Source) readEnvFiles() error {
	s.registrator = map[string]types.MappingWithEquals{}
	for _, name := range s.services() {
		svc := s.project.Services[name]
		var files []types.EnvFile
		var naming []string
		for _, f := range svc.EnvFiles {
			content, err := os.ReadFile(f.Path)
			if err != nil {
				continue
			}
			files = append(files, f)
			if bytes.Contains(content, []byte("SERVICE_")) {
				naming = append(naming, f.Path)
			}
		}
		if len(naming) == 0 {
			continue
		}
		svc.EnvFiles = files
		alone := types.Project{Environment: s.config.Environment, Services: types.Services{name: svc}}
		read, err := alone.WithServicesEnvironmentResolved(true)
		if err != nil {
			return s.errorf(name, []string{"env_file"}, "%s", err)
		}
		env := read.Services[name].Environment
		s.registrator[name] = env
		for _, key := range slices.Sorted(maps.Keys(env)) {
			if v := env[key]; v != nil && strings.HasPrefix(key, "SERVICE_") {
				for _, f := range naming {
					s.inputs[f] = fmt.Appendf(s.inputs[f], "%s=%s\n", key, *v)
				}
			}
		}
	}
	return nil
}

// casts are, of the fields that Compose casts to their types where variables may stand, those that files with the
// given text can have: for each value Compose goes through a hundred of them. A file that reads other files may have
// any field, and one with a backslash may hide the name of a key behind it.
func casts(text ...[]byte) func(*loader.Options) {
	has := func(part string) bool {
		return slices.ContainsFunc(text, func(t []byte) bool { return bytes.Contains(t, []byte(part)) })
	}
	if has(`\`) || has("include") || has("extends") {
		return func(*loader.Options) {}
	}
	absent := func(part string) bool { return part != tree.PathMatchAll && part != tree.PathMatchList && !has(part) }
	relevant := maps.Clone(loader.ToOptions(&types.ConfigDetails{}, nil).Interpolate.TypeCastMapping)
	maps.DeleteFunc(relevant, func(path tree.Path, _ interpolation.Cast) bool { return slices.ContainsFunc(path.Parts(), absent) })
	return func(o *loader.Options) { o.Interpolate.TypeCastMapping = relevant }
}

// text is the content of the project's own files.
func (s *Source) text() [][]byte {
	var text [][]byte
	for _, f := range s.config.ConfigFiles {
		text = append(text, f.Content)
	}
	return text
}

// raw are the load options of the model that values are copied from. The resolved model was validated already.
func raw(o *loader.Options) {
	o.SkipInterpolation = true
	o.SkipValidation = true
	o.SkipNormalization = true
	o.SkipConsistencyCheck = true
	o.ResolvePaths = false
}

// record notes the files that are included or extended: they are inputs too. One that can't be read here comes
// from elsewhere (a git repository) and does not count.
func (s *Source) record(event string, metadata map[string]any) {
	var paths []string
	dir, _ := metadata["workingdir"].(string)
	switch event {
	case "include":
		paths, _ = metadata["path"].(types.StringList)
	case "extends":
		s.extended = true
		if file, ok := metadata["file"].(string); ok {
			paths = []string{file}
		}
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(s.Dir, dir)
			}
			p = filepath.Join(dir, p)
		}
		if _, known := s.inputs[p]; known {
			continue
		}
		if content, err := os.ReadFile(p); err == nil {
			s.inputs[p] = content
		}
	}
}

// rawService is a service as written, merged over all files.
func (s *Source) rawService(name string) map[string]any {
	services, _ := s.raw["services"].(map[string]any)
	service, _ := services[name].(map[string]any)
	return service
}

// services are all services' names, sorted.
func (s *Source) services() []string {
	names := s.project.ServiceNames()
	slices.Sort(names)
	return names
}
