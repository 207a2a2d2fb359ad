package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write puts the output at r.Path, atomically. It replaces only what meshctl wrote. changed is false where the
// file was there already, byte for byte.
func (r *Result) Write() (changed bool, err error) {
	if r.Path == "" {
		return false, errors.New("write: the output has no path: it was made for standard output")
	}
	for _, path := range append(r.obsolete, r.Path) {
		if err := checkOurs(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	for _, path := range r.obsolete {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("remove the output of an earlier inject: %w", err)
		}
		changed = true
	}
	if old, err := os.ReadFile(r.Path); err == nil && bytes.Equal(old, r.Output) {
		return changed, nil
	}
	if err := writeFile(r.Path, r.Output); err != nil {
		return changed, fmt.Errorf("write the override: %w", err)
	}
	return true, nil
}

// writeFile replaces a file atomically: a reader sees the old content or the new.
func writeFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error counts
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// ErrNotOurs and ErrEdited are why a file is not replaced or removed.
var (
	ErrNotOurs = errors.New("meshctl did not write it")
	ErrEdited  = errors.New("it was edited since meshctl wrote it")
)

// checkOurs returns nil for a file that meshctl wrote and nobody edited.
func checkOurs(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	h, ours := ReadHeader(content)
	switch {
	case !ours:
		return fmt.Errorf("%s: %w, so it stays as it is: name another output with -o", path, ErrNotOurs)
	case h.Edited(content):
		return fmt.Errorf("%s: %w: move your changes to a compose file of your own and delete this one", path, ErrEdited)
	}
	return nil
}

// Uninject removes the files of the project that meshctl wrote, and returns their paths: those that opts
// select, and those of the usual names beside the first file. None is no error.
func Uninject(opts Options) ([]string, error) {
	s, err := open(opts)
	if err != nil {
		return nil, err
	}
	home := filepath.Dir(s.Files[0])
	candidates := unique(append(s.Ours, filepath.Join(home, autoOutput), filepath.Join(home, meshOutput)))
	var remove []string
	for _, path := range candidates {
		switch err := checkOurs(path); {
		case err == nil:
			remove = append(remove, path)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotOurs):
		default:
			return nil, err
		}
	}
	for i, path := range remove {
		if err := os.Remove(path); err != nil {
			return remove[:i], fmt.Errorf("remove the override: %w", err)
		}
	}
	return remove, nil
}
