// SPDX-License-Identifier: Apache-2.0

package tool

import (
	"io/fs"
	"syscall"
)

// status returns the inode and when it was changed last, in nanoseconds.
func status(info fs.FileInfo) (inode uint64, changed int64) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino, st.Ctim.Nano()
	}
	return 0, 0
}
