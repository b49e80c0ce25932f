// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

// Files in the folder that is the root of a jailed Firecracker.
const (
	apiSocket   = "api.sock"
	vsockSocket = "v.sock"
	archiveFile = "files.tar"
	logFile     = "machine.log" // beside the jail: Firecracker writes to it, and does not find it
)

// makeJail makes the folder with everything that Firecracker will open, and the listeners for the machine's ports. Afterwards nothing
// of ours uses a path in it: it belongs to Firecracker, which a tool may have taken over.
func (d *Driver) makeJail(g *guest, s sandbox.Spec) (files bool, err error) {
	root := d.rootOf(g.id)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return false, fmt.Errorf("make a jail: %w", err)
	}
	// Paths of sockets are short; that of the folder may not be.
	if g.root, err = os.Open(root); err != nil {
		return false, err
	}
	for _, name := range []string{kernelFile, imageFile} {
		if err := place(d.file(name), filepath.Join(root, name)); err != nil {
			return false, fmt.Errorf("put %s into a jail: %w", name, err)
		}
	}
	if places := s.Places(); s.Sockets != "" || len(places) > 0 {
		places = withoutSockets(places)
		if files = len(places) > 0; files {
			if err := writeArchive(filepath.Join(root, archiveFile), places, s.Limits.Memory/2); err != nil {
				return false, err
			}
		}
	}
	for _, port := range []uint32{controlPort, stdinPort, stdoutPort, stderrPort} {
		if err := g.listen(port); err != nil {
			return false, err
		}
	}
	for i := range uint32(maxSockets) {
		if err := g.listen(socketPort + i); err != nil {
			return false, err
		}
	}
	return files, nil
}

// withoutSockets: the folder of sockets comes by vsock.
func withoutSockets(places []sandbox.Mount) []sandbox.Mount {
	var out []sandbox.Mount
	for _, m := range places {
		if m.At != sandbox.SocketsAt {
			out = append(out, m)
		}
	}
	return out
}

// place links a file into the jail, or copies it where that is another file system. The jailed process may read it.
func place(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, 0o444))
}

func writeArchive(name string, places []sandbox.Mount, most int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	return errors.Join(pack(f, places, most), f.Close(), os.Chmod(name, 0o444))
}

// inJail is the path of a file in the jail, short whatever the jail's own.
func (g *guest) inJail(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", g.root.Fd(), name)
}

// listen makes the socket behind a port of the machine: Firecracker connects to it.
func (g *guest) listen(port uint32) error {
	path := g.inJail(fmt.Sprintf("%s_%d", vsockSocket, port))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for a virtual machine: %w", err)
	}
	ln.SetUnlinkOnClose(false) // by then the path is not ours to use
	if g.listeners == nil {
		g.listeners = map[uint32]*net.UnixListener{}
	}
	g.listeners[port] = ln
	uid := userOf(g.id)
	return errors.Join(os.Chown(path, uid, uid), os.Chmod(path, 0o600))
}

// userOf is the user that a sandbox's Firecracker runs as: of its own, so that one that was taken over reaches no other.
func userOf(id string) int {
	sum := sha256.Sum256([]byte(id))
	return 1<<30 | int(binary.BigEndian.Uint32(sum[:4])>>3)
}

// startMachine starts the jailer, which becomes Firecracker: it keeps the process, in a network namespace of its own without network.
func (g *guest) startMachine(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(g.driver.boxOf(g.id), logFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	user := strconv.Itoa(userOf(g.id))
	cmd := exec.Command(g.driver.file(jailerFile), "--id", g.id, "--exec-file", g.driver.file(machineFile), "--uid", user, "--gid", user,
		"--chroot-base-dir", filepath.Join(g.driver.state, "jail"), "--resource-limit", "fsize="+strconv.Itoa(maxLog), "--resource-limit", "no-file=1024",
		"--", "--api-sock", "/"+apiSocket)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{}, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the jailer: %w", err)
	}
	g.machine = cmd
	g.dead = make(chan struct{})
	g.workers.Go(func() {
		_ = cmd.Wait() // how it ended is in its state
		close(g.dead)
	})
	// It is one process from here on, whatever it becomes.
	if g.group != nil {
		for _, file := range g.group.Join() {
			if err := os.WriteFile(file, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
				return fmt.Errorf("put a virtual machine under its limits: %w", err)
			}
		}
	}
	return g.awaitAPI(ctx)
}

const maxLog = 1 << 20

// awaitAPI waits for the socket: nothing announces it.
func (g *guest) awaitAPI(ctx context.Context) error {
	for {
		c, err := net.Dial("unix", g.inJail(apiSocket))
		if err == nil {
			return c.Close()
		}
		select {
		case <-g.dead:
			return fmt.Errorf("firecracker ended at once: %s", g.machine.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("wait for Firecracker's socket: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// complaint is what the machine's process last said, for an error.
func (g *guest) complaint() string {
	b, _ := os.ReadFile(filepath.Join(g.driver.boxOf(g.id), logFile))
	if len(b) > 600 {
		b = b[len(b)-600:]
	}
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return ""
	}
	return fmt.Sprintf("; it said %q", b)
}

// killNamed ends the processes that were started for a sandbox: their arguments name it. It is for those of a server that is gone.
func killNamed(id string) error {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !named(pid, id) {
			continue
		}
		errs = append(errs, killOne(pid, id))
	}
	return errors.Join(errs...)
}

func killOne(pid int, id string) error {
	file, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hold the process %d of a sandbox: %w", pid, err)
	}
	defer unix.Close(file)
	if !named(pid, id) { // the number is another's by now
		return nil
	}
	if err := unix.PidfdSendSignal(file, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the process %d of a sandbox: %w", pid, err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(file), Events: unix.POLLIN}}, 10_000)
	return err
}

// named reports whether the process is a jailer or Firecracker of the sandbox.
func named(pid int, id string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(b), "\x00")
	for i, a := range args {
		if a == "--id="+id || a == id && i > 0 && args[i-1] == "--id" {
			return true
		}
	}
	return false
}

// removeAll removes a folder that a jailed process owned; links in it are not followed.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
