// SPDX-License-Identifier: Apache-2.0

package tool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"remit"
)

// Bounds of a tool's files.
const (
	maxEntries = 200_000
	maxBytes   = 4 << 30
)

// Digest returns the digest over a folder: the path, kind and content of everything in it, and whether a file is executable. It does not
// follow links; times, owners and other modes do not count.
func Digest(folder string) (remit.Digest, error) {
	d, err := digest(folder, "")
	if err != nil {
		return "", fmt.Errorf("read the files of a tool: %w", err)
	}
	return d, nil
}

// digest walks folder, and copies it to an empty folder to, if that is given: what is digested is what was copied.
func digest(folder, to string) (remit.Digest, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return "", err
	}
	defer root.Close()
	w := &walker{root: root, to: to, sum: sha256.New()}
	if err := fs.WalkDir(root.FS(), ".", w.visit); err != nil {
		return "", err
	}
	return remit.Digest("sha256:" + hex.EncodeToString(w.sum.Sum(nil))), nil
}

type walker struct {
	root    *os.Root
	to      string
	sum     hash.Hash
	entries int
	bytes   int64
}

// visit adds one entry: a line that cannot be mistaken for another, as a quoted path has no line break.
func (w *walker) visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if w.entries++; w.entries > maxEntries {
		return fmt.Errorf("there are more than %d files", maxEntries)
	}
	at := ""
	if w.to != "" {
		at = filepath.Join(w.to, path)
	}
	switch d.Type() {
	case fs.ModeDir:
		fmt.Fprintf(w.sum, "folder %q\n", path)
		if at != "" && path != "." {
			return errors.Join(os.Mkdir(at, 0o755), os.Chmod(at, 0o755)) //nolint:gosec // the sandbox's user reads it; nobody else reaches it
		}
		return nil
	case fs.ModeSymlink:
		target, err := w.root.Readlink(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(w.sum, "link %q to %q\n", path, target)
		if at != "" {
			return os.Symlink(target, at)
		}
		return nil
	case 0:
		return w.file(path, at)
	}
	return fmt.Errorf("%s is neither a file nor a folder nor a link", path)
}

func (w *walker) file(path, at string) (err error) {
	f, err := w.root.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file any more", path)
	}
	mode, kind := fs.FileMode(0o644), "file"
	if info.Mode()&0o111 != 0 {
		mode, kind = 0o755, "program"
	}
	sum, out := sha256.New(), io.Discard
	if at != "" {
		c, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Chmod(mode), c.Close()) }() // whatever the umask says
		out = c
	}
	n, err := io.Copy(io.MultiWriter(sum, out), io.LimitReader(f, maxBytes-w.bytes+1))
	if err != nil {
		return err
	}
	if w.bytes += n; w.bytes > maxBytes {
		return fmt.Errorf("there are more than %d GiB", maxBytes>>30)
	}
	fmt.Fprintf(w.sum, "%s %q %x\n", kind, path, sum.Sum(nil))
	return nil
}

// Files keeps copies of tools' files that nobody else can write: what was verified is what runs, however long it runs (S27). It is safe
// for concurrent use.
type Files struct {
	dir string

	mu     sync.Mutex // guards copies; held while one is made
	copies map[remit.ToolFiles]*kept
}

type kept struct {
	path  string
	state [32]byte // of the folder that it was copied from
}

// NewFiles empties dir, which is this process's alone, and keeps the copies there.
func NewFiles(dir string) (*Files, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove old copies of tools' files: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of tools' files: %w", err)
	}
	return &Files{dir: dir, copies: map[remit.ToolFiles]*kept{}}, nil
}

// Take returns a copy of the files, which have the digest: they are read whole the first time, and again whenever something about the
// folder has changed since. Files that changed are refused.
func (f *Files) Take(of remit.ToolFiles) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state, err := stateOf(of.From)
	if err != nil {
		return "", fmt.Errorf("look at the files of a tool: %w", err)
	}
	if k, ok := f.copies[of]; ok {
		if k.state == state {
			return k.path, nil
		}
		now, err := Digest(of.From)
		if err != nil {
			return "", err
		}
		//remit:guard S27 TestChangedFilesAreNotRun
		if now != of.Digest {
			return "", changed(of, now)
		}
		k.state = state
		return k.path, nil
	}
	path, err := f.copy(of)
	if err != nil {
		return "", err
	}
	f.copies[of] = &kept{path, state}
	return path, nil
}

func (f *Files) copy(of remit.ToolFiles) (path string, err error) {
	path = filepath.Join(f.dir, strings.TrimPrefix(string(of.Digest), "sha256:")[:32])
	if err := os.Mkdir(path, 0o755); err != nil { //nolint:gosec // as in visit
		if !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("copy the files of a tool: %w", err)
		}
		return path, f.same(of) // of another folder with the same digest
	}
	if err := os.Chmod(path, 0o755); err != nil { //nolint:gosec // as in visit
		return "", fmt.Errorf("copy the files of a tool: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	got, err := digest(of.From, path)
	if err != nil {
		return "", fmt.Errorf("copy the files of a tool: %w", err)
	}
	//remit:guard S27 TestChangedFilesAreNotRun
	if got != of.Digest {
		return "", changed(of, got)
	}
	return path, nil
}

func (f *Files) same(of remit.ToolFiles) error {
	got, err := Digest(of.From)
	if err == nil && got != of.Digest {
		err = changed(of, got)
	}
	return err
}

func changed(of remit.ToolFiles, got remit.Digest) error {
	return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("the files in %s have the digest %s, not %s: they are not what was reviewed", of.From, got, of.Digest),
		Hint: "review them, then write what remit tool digest prints into the tool's file"}
}

// stateOf tells cheaply whether anything in a folder may have changed: a file's time of change is the kernel's, and nobody sets it.
func stateOf(folder string) (out [32]byte, err error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return out, err
	}
	defer root.Close()
	sum, n := sha256.New(), 0
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > maxEntries {
			return fmt.Errorf("there are more than %d files", maxEntries)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inode, changed := status(info)
		fmt.Fprintf(sum, "%q %v %d %d %d %d\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano(), inode, changed)
		return nil
	})
	return [32]byte(sum.Sum(nil)), err
}
