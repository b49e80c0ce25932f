// SPDX-License-Identifier: Apache-2.0

// Command vm stands in for Firecracker and its jailer where there is no hardware to run them: a server of the same API on a Unix
// socket, as strict as the real one about order, bodies and states, and a "machine" that is a process in namespaces of its own, in
// which the real agent runs. It is for tests alone: it isolates nothing.
//
// It is called as jailer, as firecracker (by that) and as the machine's first process.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case "jailer":
		err = jailer(os.Args[1:])
	case "firecracker":
		err = vmm(os.Args[1:])
	case guestName:
		err = guest(os.Args[1:])
	default:
		err = fmt.Errorf("nothing is called %s", os.Args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// jailer checks what the real one is told (docs/jailer.md of Firecracker 1.x), makes the same folder, and becomes firecracker. It stays
// root and outside of the jail, as what it starts has to make a machine of namespaces; every path is then resolved as if it were in.
func jailer(args []string) error {
	end := slices.Index(args, "--")
	if end < 0 {
		end = len(args)
	}
	set := map[string][]string{}
	for i := 0; i < end; i += 2 {
		name, ok := strings.CutPrefix(args[i], "--")
		if !ok || i+1 >= end || !slices.Contains([]string{"id", "exec-file", "uid", "gid", "chroot-base-dir", "netns", "cgroup", "cgroup-version", "parent-cgroup", "resource-limit"}, name) {
			return fmt.Errorf("jailer: found argument %q which wasn't expected", args[i])
		}
		set[name] = append(set[name], args[i+1])
	}
	one := func(name string) string {
		if len(set[name]) != 1 {
			return ""
		}
		return set[name][0]
	}
	id, uid := one("id"), one("uid")
	if id == "" || len(id) > 64 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return fmt.Errorf("jailer: invalid instance ID %q", id)
	}
	for _, n := range []string{uid, one("gid")} {
		if v, err := strconv.ParseUint(n, 10, 32); err != nil || v == 0 {
			return fmt.Errorf("jailer: %q is no user to become", n)
		}
	}
	exe, err := filepath.EvalSymlinks(one("exec-file"))
	if err != nil {
		return fmt.Errorf("jailer: %w", err)
	}
	base, err := filepath.EvalSymlinks(one("chroot-base-dir"))
	if err != nil {
		return fmt.Errorf("jailer: %w", err)
	}
	root := filepath.Join(base, filepath.Base(exe), id, "root")
	if err := makeJail(root, exe, uid); err != nil {
		return fmt.Errorf("jailer: %w", err)
	}
	argv := append([]string{"firecracker", "--id=" + id, "--root=" + root, "--uid=" + uid}, args[min(end+1, len(args)):]...)
	return syscall.Exec(exe, argv, []string{})
}

// makeJail copies the program in, makes the folders and devices and gives them away, as the real one does.
func makeJail(root, exe, uid string) error {
	b, err := os.ReadFile(exe)
	if err != nil {
		return err
	}
	n, _ := strconv.Atoi(uid)
	for _, dir := range []string{"", "dev", "dev/net", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return err
		}
		if err := os.Chown(filepath.Join(root, dir), n, n); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, filepath.Base(exe)), b, 0o700)
}
