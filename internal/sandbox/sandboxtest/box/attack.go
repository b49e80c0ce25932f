// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attack tries one thing per argument and prints a line for each: the argument, a space, and "ok" or what refused it.
func attack(args []string) {
	for _, arg := range args {
		what, of, _ := strings.Cut(arg, "=")
		say := "ok"
		if err := try(what, of); err != nil {
			say = err.Error()
		}
		fmt.Printf("%s %s\n", arg, say)
	}
}

var calls = map[string][]uintptr{
	"bpf": {unix.SYS_BPF, 0, 0, 0}, "io_uring": {unix.SYS_IO_URING_SETUP, 1, 0}, "userfaultfd": {unix.SYS_USERFAULTFD, 0},
	"keyctl": {unix.SYS_KEYCTL, 0, ^uintptr(2), 1}, "perf": {unix.SYS_PERF_EVENT_OPEN, 0, 0, ^uintptr(0), ^uintptr(0), 0},
	"setuid": {unix.SYS_SETUID, 0}, "ptrace": {unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1}, "kexec": {unix.SYS_KEXEC_LOAD},
	"userns": {unix.SYS_UNSHARE, unix.CLONE_NEWUSER}, "chroot": {unix.SYS_CHROOT, 0}, "reboot": {unix.SYS_REBOOT},
	"module": {unix.SYS_INIT_MODULE}, "open_by_handle": {unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0)}, "setns": {unix.SYS_SETNS, 0, 0},
}

var families = map[string]int{"vsock": unix.AF_VSOCK, "packet": unix.AF_PACKET, "netlink": unix.AF_NETLINK, "alg": unix.AF_ALG,
	"unix": unix.AF_UNIX, "inet": unix.AF_INET, "inet6": unix.AF_INET6}

func try(what, of string) error {
	if call, ok := calls[what]; ok {
		call = append(append([]uintptr{}, call...), 0, 0, 0, 0, 0, 0)
		if _, _, errno := unix.Syscall6(call[0], call[1], call[2], call[3], call[4], call[5], call[6]); errno != 0 {
			return errno
		}
		return nil
	}
	switch what {
	case "socket":
		fd, err := unix.Socket(families[of], unix.SOCK_DGRAM, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	case "read":
		_, err := os.ReadFile(of)
		return err
	case "list":
		_, err := os.ReadDir(of)
		return err
	case "write":
		return os.WriteFile(of, []byte("x"), 0o644)
	case "dial":
		return dial("tcp", of)
	case "unix":
		return dial("unix", of)
	case "open": // for writing, what is there
		f, err := os.OpenFile(of, os.O_WRONLY, 0)
		if err == nil {
			_ = f.Close()
		}
		return err
	case "mounted":
		var s unix.Statfs_t
		if err := unix.Statfs(of, &s); err != nil {
			return err
		}
		return fmt.Errorf("read-only %v nosuid %v nodev %v", s.Flags&unix.ST_RDONLY != 0, s.Flags&unix.ST_NOSUID != 0, s.Flags&unix.ST_NODEV != 0)
	case "resolve":
		_, err := net.LookupHost(of)
		return err
	case "newuser":
		c := exec.Command("/bin/true")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		return c.Run()
	case "mount":
		return unix.Mount("none", "/tmp", "tmpfs", 0, "")
	}
	return show(what)
}

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, 3*time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// show returns what is seen, or does what ends the sandbox.
func show(what string) error {
	switch what {
	case "caps", "bounding", "seccomp":
		key := map[string]string{"caps": "CapEff:", "bounding": "CapBnd:", "seccomp": "Seccomp:"}[what]
		b, err := os.ReadFile("/proc/self/status")
		_, rest, _ := strings.Cut(string(b), key)
		value, _, _ := strings.Cut(rest, "\n")
		return fmt.Errorf("%s%w", strings.TrimSpace(value), orNothing(err))
	case "securebits":
		bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
		return fmt.Errorf("%#x%w", bits, orNothing(err))
	case "kernel":
		b, err := os.ReadFile("/proc/sys/kernel/osrelease")
		return fmt.Errorf("%s%w", strings.TrimSpace(string(b)), orNothing(err))
	case "ids":
		return fmt.Errorf("uid %d gid %d groups %v", os.Getuid(), os.Getgid(), first(os.Getgroups()))
	case "environment":
		env := os.Environ()
		slices.Sort(env)
		return fmt.Errorf("%s", strings.Join(env, ","))
	case "pids":
		all, _ := filepath.Glob("/proc/[0-9]*")
		return fmt.Errorf("%d processes, this is %d", len(all), os.Getpid())
	case "eat":
		for all := []byte{}; ; {
			more := make([]byte, 4<<20)
			for i := 0; i < len(more); i += 4096 {
				more[i] = 1
			}
			all = append(all, more...)
		}
	case "bomb":
		for {
			_ = exec.Command("/bin/sleep", "60").Start()
		}
	case "spin":
		for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		}
		return nil
	}
	return fmt.Errorf("no such attack: %s", what)
}

type nothing struct{}

func (nothing) Error() string { return "" }

func orNothing(err error) error {
	if err == nil {
		return nothing{}
	}
	return err
}

func first(ids []int, _ error) []int { return ids }
