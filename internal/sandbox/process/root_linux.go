// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

// masked are files of /proc through which the host's kernel says too much, or takes orders.
var masked = []string{"kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats", "kallsyms", "kmsg", "sysrq-trigger", "interrupts", "config.gz", "version_signature"}

// shut are folders of /proc, likewise: those that tools read are read-only, the others empty.
var (
	readOnly = []string{"sys", "fs"}
	empty    = []string{"acpi", "scsi", "bus", "irq", "driver", "tty", "asound"}
)

// build makes the root that the tool sees, and moves into it.
func build(o order) error {
	// Now and not when it was started: it may have waited, and the mounts of the host have changed since.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("have mounts of its own: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := tmpfs(o.Root, "mode=755,size=1m"); err != nil {
		return err
	}
	steps := []func(order) error{placeFiles, placeMounts, placeDevices, placeProc, scratch, enter}
	for _, step := range steps {
		if err := step(o); err != nil {
			return fmt.Errorf("build the root: %w", err)
		}
	}
	if err := unix.Sethostname([]byte("tool")); err != nil {
		return fmt.Errorf("name the host: %w", err)
	}
	return loopback()
}

func tmpfs(at, data string) error {
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	return nil
}

func placeFiles(o order) error {
	var errs []error
	for _, dir := range []string{"proc", "dev", "tmp", "etc"} {
		errs = append(errs, os.MkdirAll(filepath.Join(o.Root, dir), 0o755))
	}
	for name, content := range map[string]string{"etc/passwd": "nobody:x:65534:65534:nobody:/tmp:/bin/sh\n", "etc/group": "nogroup:x:65534:\n",
		"etc/hosts": "127.0.0.1 localhost\n::1 localhost\n"} {
		errs = append(errs, os.WriteFile(filepath.Join(o.Root, name), []byte(content), 0o644))
	}
	return errors.Join(errs...)
}

// placeMounts mounts programs and libraries of the host, and what the tool was given.
func placeMounts(o order) error {
	mounts := o.Spec.Places()
	for _, at := range []string{"/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl"} {
		if _, err := os.Stat(at); err == nil {
			mounts = append(mounts, sandbox.Mount{From: at, At: at})
		}
	}
	for _, at := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		if to, err := os.Readlink(at); err == nil {
			if err := os.Symlink(to, filepath.Join(o.Root, at)); err != nil {
				return err
			}
		} else if _, err := os.Stat(at); err == nil {
			mounts = append(mounts, sandbox.Mount{From: at, At: at})
		}
	}
	for _, m := range mounts {
		if err := bind(o.Root, m); err != nil {
			return err
		}
	}
	return nil
}

// bind mounts m below root: without set-user-id and devices, and read-only unless stated, with all that is mounted in it.
func bind(root string, m sandbox.Mount) error {
	info, err := os.Stat(m.From)
	if err != nil {
		return err
	}
	at := filepath.Join(root, m.At)
	if info.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
		err = os.WriteFile(at, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(m.From, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", m.From, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if !m.Write {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("mount %s with less: %w", m.From, err)
	}
	return nil
}

func placeDevices(o order) error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		at := filepath.Join(o.Root, "dev", name)
		if err := os.WriteFile(at, nil, 0o644); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+name, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /dev/%s: %w", name, err)
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join(o.Root, "dev", name)); err != nil {
			return err
		}
	}
	return nil
}

func placeProc(o order) error {
	proc := filepath.Join(o.Root, "proc")
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, name := range masked {
		err := unix.Mount("/dev/null", filepath.Join(proc, name), "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask /proc/%s: %w", name, err)
		}
	}
	for _, name := range empty {
		err := unix.Mount("tmpfs", filepath.Join(proc, name), "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "size=0,mode=555")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask /proc/%s: %w", name, err)
		}
	}
	for _, name := range readOnly {
		at := filepath.Join(proc, name)
		if err := unix.Mount(at, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind /proc/%s: %w", name, err)
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("make /proc/%s read-only: %w", name, err)
		}
	}
	return nil
}

func scratch(o order) error {
	return tmpfs(filepath.Join(o.Root, sandbox.ScratchAt), fmt.Sprintf("mode=1777,size=%d", o.Spec.Limits.Scratch))
}

// enter makes the root the root and lets go of the old one.
func enter(o order) error {
	if err := unix.Chdir(o.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return unix.Chdir(sandbox.ScratchAt)
}
