// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const maxFolders = 8 // levels of folders below the directory

// Load reads all .yaml, .yml, .rego and .pins.json files below dir, and parses them as Parse does. Files and folders whose names begin
// with a dot are left out. A symbolic link that leaves dir, and a file or folder that somebody else could write (S31), is an
// error.
func Load(dir string, td spiffeid.TrustDomain) (*Set, error) {
	files, err := Read(dir)
	if err != nil {
		return nil, err
	}
	return Parse(files, td)
}

// Read is the first half of Load: the bytes, by path relative to dir.
func Read(dir string) (map[string][]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	l := &loader{root: root, out: &problems{}, files: map[string][]byte{}}
	l.above(dir)
	l.folder(".", 0)
	return l.files, errors.Join(l.out.err(), root.Close())
}

// ReadFile reads one file of dir under the rules of Read; os.ErrNotExist when it is not there.
func ReadFile(dir, name string, limit int64) (_ []byte, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l := &loader{root: root, out: &problems{}}
	if !l.owned(f, name) {
		return nil, l.out.err()
	}
	return io.ReadAll(io.LimitReader(f, limit+1))
}

type loader struct {
	root  *os.Root // resolves no path out of the directory, by whatever link
	out   *problems
	files map[string][]byte
	total int
}

// above refuses a directory that somebody else could put another one in the place of. In a sticky folder, such as /tmp, only the
// owner renames.
func (l *loader) above(dir string) {
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		l.out.add(dir, 0, "%v", err)
		return
	}
	for path != "/" {
		path = filepath.Dir(path)
		info, err := os.Stat(path)
		if err != nil {
			l.out.add(path, 0, "%v", err)
			return
		}
		//remit:guard S31 TestFoldersAbove
		if info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky == 0 {
			l.out.add(path, 0, "others can write this folder (mode %#o), and so replace the configuration in it: chmod go-w, or move the configuration", info.Mode().Perm())
		}
		//remit:guard S31 TestForeignOwner
		if foreign(info) {
			l.out.add(path, 0, "this folder belongs to another user, who can replace the configuration in it: chown it to root or to the user of the server, or move the configuration")
		}
	}
}

func (l *loader) folder(name string, depth int) {
	if depth > maxFolders {
		l.out.add(name, 0, "deeper than %d folders: move it up", maxFolders)
		return
	}
	f, err := l.root.Open(name)
	if err != nil {
		l.out.add(name, 0, "%v", err)
		return
	}
	defer f.Close()
	if !l.owned(f, name) {
		return
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		l.out.add(name, 0, "%v", err)
		return
	}
	for _, e := range entries {
		l.entry(path.Join(name, e.Name()), e, depth)
	}
}

func (l *loader) entry(name string, e fs.DirEntry, depth int) {
	if strings.HasPrefix(e.Name(), ".") {
		return
	}
	if e.IsDir() {
		l.folder(name, depth+1)
		return
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".rego":
		l.file(name)
	case ".json":
		if strings.HasSuffix(name, pinsSuffix) {
			l.file(name)
		}
	}
}

func (l *loader) file(name string) {
	if len(l.files) == maxFiles {
		l.out.add(name, 0, "more than %d files: join some", maxFiles)
		return
	}
	// Without O_NONBLOCK the opening of a named pipe would wait for its writer.
	f, err := l.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		l.out.add(name, 0, "%v: a link must stay inside the directory", err)
		return
	}
	defer f.Close()
	if !l.owned(f, name) {
		return
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		l.out.add(name, 0, "%v", err)
		return
	}
	if l.total += len(b); l.total > maxTotalBytes {
		l.out.add(name, 0, "all files together are more than %d bytes: remove some", maxTotalBytes)
		return
	}
	l.files[name] = b
}

// owned reports whether only the server's user or root can write f, and that it is a file or folder.
func (l *loader) owned(f *os.File, name string) bool {
	info, err := f.Stat()
	if err != nil {
		l.out.add(name, 0, "%v", err)
		return false
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		l.out.add(name, 0, "this is neither a file nor a folder: remove it")
		return false
	}
	//remit:guard S7 TestLoadRefuses
	//remit:guard S31 TestLoadRefuses
	if info.Mode().Perm()&0o022 != 0 {
		l.out.add(name, 0, "others can write it (mode %#o): chmod go-w", info.Mode().Perm())
		return false
	}
	//remit:guard S31 TestForeignOwner
	if foreign(info) {
		l.out.add(name, 0, "it belongs to another user, who can write it: chown it to root or to the user of the server")
		return false
	}
	return true
}

func foreign(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid()
}
