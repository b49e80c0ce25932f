// SPDX-License-Identifier: Apache-2.0

// Package durable replaces files so that readers, and a crash at any moment, find the old or the new content, whole: key files,
// checkpoints, sessions. It knows nothing of what it writes.
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace writes content under a name that nobody knows, makes it durable, and moves it into place. The file has exactly the mode that
// is given, and is never open to more. When Replace returns nil, the new content outlives a crash.
func Replace(path string, content []byte, mode fs.FileMode) error {
	return ReplaceBy(path, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// ReplaceBy is Replace of a content that write writes. When write fails, the old file stays.
func ReplaceBy(path string, mode fs.FileMode, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	err = write(f)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncFolder(filepath.Dir(path))
}

// SyncFolder makes the names in a folder durable.
func SyncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
