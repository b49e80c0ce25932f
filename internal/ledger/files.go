// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"remit/internal/durable"
)

// files writes tiles so that many become durable together: put starts the writing, sync waits for all. A tile is written at its
// final place, because nobody looks for it there before a checkpoint vouches for it, which is published after sync.
type files struct {
	dir     string
	open    []*os.File
	changed map[string]bool // folders with entries that are not durable
}

// maxOpen bounds the files that wait for sync.
const maxOpen = 64

// put writes a file under the log's folder.
func (f *files) put(name string, content []byte) error {
	path := filepath.Join(f.dir, name)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // the log is no secret; its folder is private
	if errors.Is(err, fs.ErrNotExist) {
		if err = f.mkdir(filepath.Dir(path)); err == nil {
			file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // as above
		}
	}
	if err != nil {
		return err
	}
	f.open = append(f.open, file)
	f.changed[filepath.Dir(path)] = true
	if _, err := file.Write(content); err != nil {
		return err
	}
	// Only a hint, so that less is left to do for sync, which sees all errors.
	_ = unix.SyncFileRange(int(file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	if len(f.open) < maxOpen {
		return nil
	}
	return f.sync()
}

// mkdir makes a folder and those above it.
func (f *files) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755) //nolint:gosec // as in put
	if errors.Is(err, fs.ErrNotExist) && len(dir) > len(f.dir) {
		if err = f.mkdir(filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, 0o755) //nolint:gosec // as in put
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	f.changed[filepath.Dir(dir)] = true
	return err
}

// sync makes durable what was put, or returns an error.
func (f *files) sync() error {
	var errs []error
	for _, file := range f.open {
		errs = append(errs, unix.Fdatasync(int(file.Fd())), file.Close())
	}
	f.open = f.open[:0]
	for dir := range f.changed {
		errs = append(errs, durable.SyncFolder(dir))
	}
	clear(f.changed)
	return errors.Join(errs...)
}

// discard lets go of what was put and not synced.
func (f *files) discard() {
	for _, file := range f.open {
		_ = file.Close() // what it holds is written anew
	}
	f.open = f.open[:0]
	clear(f.changed)
}

// replace writes a file in the log's folder durably, so that readers and a crash find the old or the new one. Nobody else writes there, so
// the fresh one has a fixed name, and what a crash leaves of it is overwritten (durable.Replace would leave it).
func (f *files) replace(name string, content []byte) error {
	fresh := filepath.Join(f.dir, "."+name)
	file, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // as in put
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(fresh, filepath.Join(f.dir, name)); err != nil {
		return err
	}
	return durable.SyncFolder(f.dir)
}
