// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

const (
	childName = "remit-process-box"
	readyWord = "ready\n"
	goByte    = 'g'
	nobody    = 65534
	backlog   = 128

	ordersFD, readyFD = 3, 4
)

// order is what the child builds.
type order struct {
	Spec   sandbox.Spec
	Root   string   // a folder of the host, empty, on which the root is mounted
	Switch bool     // become nobody: only root can map two users
	Count  bool     // bound the processes by a limit of the process: the host has no groups
	Join   []string // the files of its control groups
}

// Dispatch becomes a sandboxed tool if this process was started to, and then does not return. It comes before anything else in main.
func Dispatch() {
	if os.Args[0] != childName {
		return
	}
	runtime.LockOSThread() // what is given up is given up by the thread that becomes the tool
	fmt.Fprintf(os.Stderr, "start in a process sandbox: %v\n", becomeTool())
	os.Exit(127)
}

func becomeTool() error {
	orders, ready := os.NewFile(ordersFD, "orders"), os.NewFile(readyFD, "ready")
	in := bufio.NewReader(orders)
	line, err := in.ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 { // nobody needed it
		os.Exit(0)
	}
	if err != nil {
		return fmt.Errorf("read what to build: %w", err)
	}
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("read what to build: %w", err)
	}
	for _, file := range o.Join { // not by its number, which may be another's by now
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			return fmt.Errorf("put a process under its limits: %w", err)
		}
	}
	if err := build(o); err != nil {
		return err
	}
	if err := report(o.Spec.Listen); err != nil {
		return err
	}
	if b, err := in.ReadByte(); err != nil || b != goByte {
		if errors.Is(err, io.EOF) { // destroyed before it was started
			os.Exit(0)
		}
		return fmt.Errorf("wait for the word to go: %w", err)
	}
	if err := errors.Join(orders.Close(), ready.Close()); err != nil {
		return err
	}
	if err := giveUp(o); err != nil {
		return err
	}
	err = syscall.Exec(o.Spec.Command[0], o.Spec.Command, o.Spec.Environ())
	return fmt.Errorf("execute %s: %w", o.Spec.Command[0], err)
}

// report says that all is built, and hands over the socket that listens in the namespace: whoever made the sandbox answers there, and
// the tool never has it.
func report(listen string) error {
	if listen == "" {
		return unix.Sendmsg(readyFD, []byte(readyWord), nil, nil, 0)
	}
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !at.Addr().Is4() {
		return fmt.Errorf("listen in a sandbox: %s is no IPv4 address and port: %w", listen, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("listen in a sandbox: %w", err)
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		return fmt.Errorf("listen on %s in a sandbox: %w", listen, err)
	}
	return unix.Sendmsg(readyFD, []byte(readyWord), unix.UnixRights(fd), nil, 0)
}

// giveUp leaves nothing but what the tool may: user, capabilities, files, system calls.
func giveUp(o order) error {
	limits := map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 1024, unix.RLIMIT_MEMLOCK: 64 << 10}
	if o.Count {
		limits[unix.RLIMIT_NPROC] = uint64(o.Spec.Limits.Processes)
	}
	for what, n := range limits {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limit a process: %w", err)
		}
	}
	if err := forgo(o); err != nil {
		return err
	}
	var err error
	err = landlock.V5.BestEffort().RestrictPaths(landlock.RODirs("/"), landlock.RWFiles("/dev/null", "/dev/zero", "/dev/full"),
		landlock.RWDirs(writable(o.Spec)...))
	if err != nil {
		return fmt.Errorf("restrict the files: %w", err)
	}
	// What this process was given by accident is not for the tool.
	err = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("close what was inherited: %w", err)
	}
	err = filter()
	return err
}

// forgo gives up user and capabilities. Dropping those that are held is one of two layers, as executing does it, too.
func forgo(o order) error {
	// Locked: no root without capabilities gets them back by executing.
	const noRoot = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<5
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0); err != nil {
		return fmt.Errorf("lock the capabilities: %w", err)
	}
	for c := uintptr(0); c <= 63; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if o.Switch {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody)); err != nil {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forgo new privileges: %w", err)
	}
	return nil
}

func writable(s sandbox.Spec) []string {
	dirs := []string{sandbox.ScratchAt}
	for _, m := range s.Places() {
		if info, err := os.Stat(m.At); m.Write && err == nil && info.IsDir() {
			dirs = append(dirs, m.At)
		}
	}
	return dirs
}

func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop the capabilities: %w", err)
	}
	return nil
}

// loopback brings the only network up: 127.0.0.1 of this namespace.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var request struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	request.flags = unix.IFF_UP
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("bring the loopback up: %w", errno)
	}
	return nil
}
