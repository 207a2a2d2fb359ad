package images

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// WriteLayer writes the one layer of c's image: its program, its directories, and the files of the tree extra
// if that is not empty. Equal input gives equal bytes: entries are sorted, times are zero.
func WriteLayer(w io.Writer, c Component, program, extra string) error {
	t := tar.NewWriter(w)
	dirs := c.Dirs()
	slices.SortFunc(dirs, func(a, b Dir) int { return strings.Compare(a.Path, b.Path) })
	written := map[string]bool{}
	for _, d := range dirs {
		written[d.Path] = true
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d.Path + "/", Mode: d.Mode, Uid: d.UID, Gid: d.UID, Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("write %s: %w", d.Path, err)
		}
	}
	if extra != "" {
		if err := addTree(t, extra, written); err != nil {
			return err
		}
	}
	if err := addFile(t, program, c.Name, 0o755); err != nil {
		return err
	}
	return t.Close()
}

func addTree(t *tar.Writer, root string, written map[string]bool) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if name == "." || written[name] {
			return nil
		}
		switch {
		case d.IsDir():
			return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, Format: tar.FormatPAX})
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, Format: tar.FormatPAX})
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if info.Mode()&0o111 != 0 {
			mode = 0o755
		}
		return addFile(t, p, path.Clean(name), mode)
	})
}

func addFile(t *tar.Writer, file, name string, mode int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: mode, Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := io.Copy(t, f); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
