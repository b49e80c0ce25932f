// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"remit/internal/sandbox"
)

// errTooBig is said of files that would fill the machine's memory, in which they lie.
var errTooBig = errors.New("the files of the tool are more than half of its memory: put them into the root image, or raise the limit of memory")

// pack writes the files and mounts of a sandbox as one archive, which is a drive of its machine.
func pack(w io.Writer, places []sandbox.Mount, most int64) error {
	out := tar.NewWriter(w)
	for _, m := range places {
		if m.Write {
			return fmt.Errorf("mount %s writable in a virtual machine: %w", m.From, sandbox.ErrUnsupported)
		}
		err := filepath.WalkDir(m.From, func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(m.From, name)
			if err != nil {
				return err
			}
			return packOne(out, name, path.Join(m.At, filepath.ToSlash(rel)), name == m.From, &most)
		})
		if err != nil {
			return fmt.Errorf("pack %s for a virtual machine: %w", m.From, err)
		}
	}
	return out.Close()
}

// packOne adds one file. What is neither a file, a folder nor a link has no content that could be given.
func packOne(out *tar.Writer, name, at string, top bool, most *int64) error {
	stat := os.Lstat
	if top {
		stat = os.Stat // as a mount follows a link
	}
	info, err := stat(name)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: strings.TrimPrefix(at, "/"), Mode: int64(info.Mode().Perm() &^ 0o222), ModTime: info.ModTime(), Format: tar.FormatPAX}
	switch {
	case info.IsDir():
		h.Typeflag = tar.TypeDir
		return out.WriteHeader(h)
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(name); err != nil {
			return err
		}
		return out.WriteHeader(h)
	case !info.Mode().IsRegular():
		return nil
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	//remit:guard S24 TestFilesTooBig
	if *most -= h.Size; *most < 0 {
		return errTooBig
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(out, f, h.Size)
	return err
}

// unpack lays the archive out below root, which is empty but for what the agent made: nothing in the archive leaves it.
func unpack(r io.Reader, folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = unpackOne(root, in, h)
		}
		if err != nil {
			return fmt.Errorf("lay out the tool's files: %w", err)
		}
	}
}

func unpackOne(root *os.Root, in io.Reader, h *tar.Header) error {
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(h.Name, mode|0o700)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, h.Name)
	}
	if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(h.Name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode|0o200)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, in, h.Size)
	return errors.Join(err, f.Close())
}
