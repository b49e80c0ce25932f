// SPDX-License-Identifier: Apache-2.0

// Package unmount is the child that a gVisor kernel starts while it starts itself, to let go of /proc when it is told to. It is this program, too,
// of which it needs nothing: the package imports next to nothing, so that Go initialises it before nearly all others.
package unmount

import (
	"os"
	"syscall"
)

// As sentrycmd.Umount of gVisor does it. Whatever else gVisor may come to say to its child goes to gVisor's own code.
func init() {
	const sync = 3
	if len(os.Args) != 4 || os.Args[0] != "/proc/self/exe" || os.Args[1] != "umount" || os.Args[2] != "--sync-fd=3" || os.Args[3] != "/proc" {
		return
	}
	b := make([]byte, 1)
	for {
		n, err := syscall.Read(sync, b)
		if err == syscall.EINTR {
			continue
		}
		if n != 1 || err != nil || syscall.Unmount("/proc", syscall.MNT_DETACH) != nil {
			os.Exit(128)
		}
		os.Exit(0)
	}
}
