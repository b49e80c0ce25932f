// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox/firecracker"
)

// guestName is the machine's first process.
const guestName = "vm-guest"

// run boots the "machine": a process in namespaces of its own with the folder that the image names as its root, whose connections to
// ports of the host go through here, as those of a real one go through Firecracker.
func (m *machine) run() error {
	image, err := os.ReadFile(m.at(*m.drives[0].Path))
	if err != nil {
		return err
	}
	if !*m.drives[0].Root || m.vsock == nil || m.boot.Args == nil || !strings.Contains(*m.boot.Args, "init=/sbin/"+firecracker.AgentName) {
		return errors.New("the machine would not find its root, its host or its first process")
	}
	disk, files := "", []*os.File{}
	if len(m.drives) > 1 {
		f, err := os.Open(m.at(*m.drives[1].Path))
		if err != nil {
			return err
		}
		defer f.Close()
		disk, files = "files", append(files, f)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), "host")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{guestName, strings.TrimSpace(string(image)), disk}
	cmd.ExtraFiles, cmd.Stderr, cmd.Env = append([]*os.File{theirs}, files...), os.Stderr, []string{}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: 65534, HostID: 65534, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the machine dies with the thread
		started <- cmd.Start()
		_ = cmd.Wait()
		os.Exit(0) // Firecracker ends with its guest
	}()
	if err := <-started; err != nil {
		return err
	}
	go m.connect(pair[0])
	return nil
}

// connect answers the machine's requests for a port with a connection to the socket of that port: UDS_PATH_PORT.
func (m *machine) connect(fd int) {
	dir, err := os.Open(m.root)
	if err != nil {
		os.Exit(1)
	}
	for {
		b := make([]byte, 4)
		if n, err := unix.Read(fd, b); err != nil || n != 4 {
			return
		}
		c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d%s_%d", dir.Fd(), filepath.Join("/", *m.vsock.Path), binary.BigEndian.Uint32(b)))
		if err != nil { // nobody listens: reset
			_ = unix.Sendmsg(fd, []byte{1}, nil, nil, 0)
			continue
		}
		f, err := c.(*net.UnixConn).File()
		if err == nil {
			_ = unix.Sendmsg(fd, []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0)
			_ = f.Close()
		}
		_ = c.Close()
	}
}

// guest is the machine: it mounts its root image, and runs the agent.
func guest(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: " + guestName + " FOLDER DISK")
	}
	image, disk := args[0], args[1]
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount(image, image, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", filepath.Join(image, "proc"), "proc", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("/usr", filepath.Join(image, "usr"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := devices(filepath.Join(image, "dev"), disk); err != nil {
		return err
	}
	if err := errors.Join(unix.Chdir(image), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/")); err != nil {
		return fmt.Errorf("mount the root image: %w", err)
	}
	var mu sync.Mutex
	agent := firecracker.Agent{Disk: "/dev/vdb", VMStat: "/vmstat", Dial: func(port uint32) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		return dial(port)
	}}
	if _, err := os.Stat("/other-build"); err == nil { // an image with an agent of another build
		conn, err := dial(1024)
		if err != nil {
			return err
		}
		fmt.Fprintln(conn, `{"hello":99}`)
		_, err = io.Copy(io.Discard, conn)
		return err
	}
	return agent.Run()
}

// devices are what the machine's kernel would have: the usual ones, and the second drive.
func devices(dev, disk string) error {
	if err := unix.Mount("dev", dev, "tmpfs", 0, ""); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		at := filepath.Join(dev, name)
		if err := errors.Join(os.WriteFile(at, nil, 0o644), unix.Mount("/dev/"+name, at, "", unix.MS_BIND, "")); err != nil {
			return err
		}
	}
	if disk == "" {
		return nil
	}
	drive, err := os.Create(filepath.Join(dev, "vdb"))
	if err != nil {
		return err
	}
	_, err = io.Copy(drive, os.NewFile(4, "drive"))
	return errors.Join(err, drive.Close())
}

// dial asks the process that is the machine's hardware for a connection.
func dial(port uint32) (net.Conn, error) {
	if err := unix.Sendmsg(3, binary.BigEndian.AppendUint32(nil, port), nil, nil, 0); err != nil {
		return nil, err
	}
	b, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(3, b, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if b[0] != 0 {
		return nil, unix.ECONNRESET
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, unix.EPROTO)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, unix.EPROTO)
	}
	f := os.NewFile(uintptr(fds[0]), "host")
	defer f.Close()
	return net.FileConn(f)
}
