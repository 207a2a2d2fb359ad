package docker

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"

	"github.com/composure-mesh/composure/internal/images"
	"github.com/composure-mesh/composure/mesh/labels"
)

// LoadImages loads those of the set's images that the engine lacks, or has with another content, and calls
// loaded for each. It asks first, so a second call costs one question an image.
func (e *Engine) LoadImages(ctx context.Context, set *images.Set, loaded func(ref string)) error {
	for _, c := range images.Components {
		ref := set.Ref(c.Name)
		have, err := e.has(ctx, ref, set.Content(c))
		if err != nil {
			return err
		}
		if have {
			continue
		}
		if err := e.load(ctx, set, c); err != nil {
			return fmt.Errorf("load image %s: %w", ref, err)
		}
		loaded(ref)
	}
	// A tag that moved leaves its old image without a name.
	_, err := e.ImagesPrune(ctx, filters.NewArgs(filters.Arg("dangling", "true"), filters.Arg("label", labels.Content)))
	if err != nil {
		return fmt.Errorf("remove replaced images: %w", err)
	}
	return nil
}

func (e *Engine) has(ctx context.Context, ref, content string) (bool, error) {
	info, err := e.ImageInspect(ctx, ref)
	if errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("image %s: %w", ref, err)
	}
	return info.Config != nil && info.Config.Labels[labels.Content] == content, nil
}

func (e *Engine) load(ctx context.Context, set *images.Set, c images.Component) error {
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := set.Archive(pw, c)
		pw.CloseWithError(err)
		written <- err
	}()
	resp, err := e.ImageLoad(ctx, pr)
	_ = pr.Close() // an early end of the load must end the writer too
	werr := <-written
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	have, err := e.has(ctx, set.Ref(c.Name), set.Content(c))
	if err == nil && !have {
		err = errors.Join(errors.New("the engine did not take it"), werr)
	}
	return err
}
