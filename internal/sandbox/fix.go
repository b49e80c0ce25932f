// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"path/filepath"
	"strings"
)

// Host is what the fix of a problem depends on.
type Host struct {
	Root     bool   // this process is root
	Settings string // the folder of the kernel's settings
	Path     string // where commands are, as in $PATH
}

// ThisHost is the one that this process runs on.
func ThisHost() Host {
	return Host{Root: os.Geteuid() == 0, Settings: "/proc/sys", Path: os.Getenv("PATH") + ":/usr/sbin:/sbin"}
}

// Has reports whether a command is there: small images lack many.
func (h Host) Has(command string) bool {
	for _, dir := range filepath.SplitList(h.Path) {
		if info, err := os.Stat(filepath.Join(dir, command)); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return true
		}
	}
	return false
}

// forbidding are the settings of Linux that forbid user namespaces: to everybody, or to all but root. Few kernels have all of them.
var forbidding = []struct {
	name, forbids, allows string
	root                  bool
}{
	{"user.max_user_namespaces", "0", "15000", true},
	{"kernel.unprivileged_userns_clone", "0", "1", false},             // Debian
	{"kernel.apparmor_restrict_unprivileged_userns", "1", "0", false}, // Ubuntu
}

// NamespaceFix says how a sandbox gets its namespaces: the settings that forbid them here and what to set, or who else may forbid them.
func (h Host) NamespaceFix() string {
	var set []string
	sysctl := h.Has("sysctl")
	for _, s := range forbidding {
		at := filepath.Join(h.Settings, strings.ReplaceAll(s.name, ".", "/"))
		b, err := os.ReadFile(at)
		if err == nil && strings.TrimSpace(string(b)) == s.forbids && (s.root || !h.Root) {
			if sysctl {
				set = append(set, "sysctl -w "+s.name+"="+s.allows)
			} else {
				set = append(set, "echo "+s.allows+" > "+at)
			}
		}
	}
	as := ""
	if !h.Root {
		as = "run remit serve as root, or "
	}
	if len(set) > 0 {
		return as + "allow user namespaces, as root: " + strings.Join(set, " && ")
	}
	return as + "let remit make namespaces and trace its children. In a container: CAP_SYS_ADMIN, CAP_SYS_PTRACE, a seccomp profile that allows clone, mount, pivot_root " +
		"and ptrace, and an unmasked /proc. Under systemd: without RestrictNamespaces=, ProtectKernelTunables=, ProtectKernelLogs= and SystemCallFilter=~@privileged"
}

// GroupFix says how sandboxes get limits of memory and processor.
func (h Host) GroupFix() string {
	if !h.Root {
		return "run remit as root, or under systemd with Delegate=yes"
	}
	return "start remit in a control group of its own that it may change: under systemd with Delegate=yes, in a container with /sys/fs/cgroup mounted writable"
}
