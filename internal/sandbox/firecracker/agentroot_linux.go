// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

// newRoot is a folder of the image on which the tool's root is put together.
const newRoot = sandbox.ScratchAt

// made are the folders that the agent makes itself; the image's are not seen.
var made = []string{"proc", "dev", "sys", "tmp", "run", "tool", "lost+found"}

// build makes the root that the tool sees, of the image, the tool's files and what is only here, and moves into it.
func (a *Agent) build(b *build) error {
	if _, err := os.Stat("/dev/null"); err != nil { // the kernel may have done it
		if err := unix.Mount("dev", "/dev", "devtmpfs", unix.MS_NOSUID, ""); err != nil {
			return fmt.Errorf("mount the devices: %w", err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	var files *os.File
	if b.Files {
		f, err := os.Open(a.Disk)
		if err != nil {
			return fmt.Errorf("open the tool's files: %w", err)
		}
		defer f.Close()
		files = f
	}
	if err := tmpfs(newRoot, "mode=755"); err != nil {
		return err
	}
	if err := placeImage(); err != nil {
		return fmt.Errorf("build the root: %w", err)
	}
	if files != nil {
		if err := unpack(bufio.NewReaderSize(files, 1<<20), newRoot); err != nil {
			return err
		}
	}
	for _, step := range []func() error{placeDevices, func() error { return placeRest(b.Scratch) }, enter, loopback} {
		if err := step(); err != nil {
			return fmt.Errorf("build the root: %w", err)
		}
	}
	return unix.Sethostname([]byte("tool"))
}

func tmpfs(at, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	return nil
}

// placeImage binds what the image has at its top, read-only.
func placeImage() error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		at := filepath.Join(newRoot, e.Name())
		switch {
		case slices.Contains(made, e.Name()):
		case e.Type()&os.ModeSymlink != 0:
			to, err := os.Readlink("/" + e.Name())
			if err == nil {
				err = os.Symlink(to, at)
			}
			if err != nil {
				return err
			}
		case e.IsDir():
			if err := bind("/"+e.Name(), at, os.Mkdir(at, 0o755)); err != nil {
				return err
			}
		case e.Type().IsRegular():
			if err := bind("/"+e.Name(), at, os.WriteFile(at, nil, 0o644)); err != nil {
				return err
			}
		}
	}
	return nil
}

func bind(from, at string, err error) error {
	if err != nil {
		return err
	}
	if err := unix.Mount(from, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", from, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("mount %s with less: %w", from, err)
	}
	return nil
}

func placeDevices() error {
	dev := filepath.Join(newRoot, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		at := filepath.Join(dev, name)
		err := os.WriteFile(at, nil, 0o644)
		if err == nil {
			err = unix.Mount("/dev/"+name, at, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("mount /dev/%s: %w", name, err)
		}
	}
	var errs []error
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		errs = append(errs, os.Symlink(to, filepath.Join(dev, name)))
	}
	return errors.Join(errs...)
}

func placeRest(scratch int64) error {
	proc := filepath.Join(newRoot, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := tmpfs(filepath.Join(newRoot, sandbox.SocketsAt), "mode=755,size=1m"); err != nil {
		return err
	}
	return tmpfs(filepath.Join(newRoot, sandbox.ScratchAt), fmt.Sprintf("mode=1777,size=%d", scratch))
}

// enter makes the root the root and lets go of the old one.
func enter() error {
	if err := unix.Chdir(newRoot); err != nil {
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
	return unix.Chdir("/")
}

// loopback brings the only network up: 127.0.0.1 of this machine.
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

// vsock is a connection to the host of a virtual machine.
type vsock struct {
	*os.File
	address vsockAddress
}

type vsockAddress uint32

func (vsockAddress) Network() string  { return "vsock" }
func (a vsockAddress) String() string { return fmt.Sprintf("host:%d", uint32(a)) }

func (v vsock) LocalAddr() net.Addr  { return v.address }
func (v vsock) RemoteAddr() net.Addr { return v.address }
func (v vsock) CloseWrite() error {
	raw, err := v.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }), err)
}

func dialVsock(port uint32) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: hostCID, Port: port}); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to port %d of the host: %w", port, err), unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return vsock{os.NewFile(uintptr(fd), "vsock"), vsockAddress(port)}, nil
}
