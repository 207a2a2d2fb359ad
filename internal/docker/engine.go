// Package docker is meshctl's way to the Docker engine: found as the docker command finds it, and asked for few
// things only.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	cmdcontext "github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"
	"github.com/docker/docker/client"
)

// Engine is one Docker engine.
type Engine struct {
	*client.Client
	arch string
}

// Architecture is the engine's architecture in Go's words, such as amd64; meshctl's own may differ.
func (e *Engine) Architecture() string { return e.arch }

// Connect finds the engine by DOCKER_HOST, DOCKER_CONTEXT or the current context of the docker command, in
// this order, and asks for its architecture.
func Connect(ctx context.Context, getenv func(string) string) (*Engine, error) {
	opts := []client.Opt{client.FromEnv}
	if getenv("DOCKER_HOST") == "" {
		var err error
		if opts, err = contextOpts(configDir(getenv), getenv("DOCKER_CONTEXT")); err != nil {
			return nil, err
		}
	}
	c, err := client.NewClientWithOpts(append(opts, client.WithAPIVersionNegotiation())...)
	if err != nil {
		return nil, fmt.Errorf("docker engine: %w", err)
	}
	v, err := c.ServerVersion(ctx)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("docker engine at %s: %w; is it running, and may you use it?", c.DaemonHost(), err)
	}
	return &Engine{Client: c, arch: v.Arch}, nil
}

func configDir(getenv func(string) string) string {
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker")
}

// contextOpts are the options of the named docker context; of the one that the docker command's configuration
// calls current where name is empty; none for "default".
func contextOpts(dir, name string) ([]client.Opt, error) {
	if name == "" {
		var err error
		if name, err = currentContext(filepath.Join(dir, "config.json")); err != nil {
			return nil, err
		}
	}
	if name == "" || name == "default" {
		return []client.Opt{client.FromEnv}, nil
	}
	s := store.New(filepath.Join(dir, "contexts"), store.NewConfig(
		func() any { return &map[string]any{} },
		store.EndpointTypeGetter(cmdcontext.DockerEndpoint, func() any { return &cmdcontext.EndpointMeta{} })))
	meta, err := s.GetMetadata(name)
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	em, err := cmdcontext.EndpointFromContext(meta)
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	ep, err := cmdcontext.WithTLSData(s, name, em)
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	opts, err := ep.ClientOpts()
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	return opts, nil
}

func currentContext(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	var c struct {
		CurrentContext string `json:"currentContext"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return c.CurrentContext, nil
}
