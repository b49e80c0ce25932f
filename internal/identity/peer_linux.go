// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the walk from a process to its ancestors.
const maxDepth = 64

// Peer is a process that is held by a pidfd, so that its number cannot come to mean another process unnoticed. It is safe for
// concurrent use. Close it.
type Peer struct {
	PID      int
	UID, GID uint32 // as they were at connect; a Peer of OpenPeer has none

	mu sync.RWMutex // guards fd: a closed descriptor's number may be given to something else
	fd int
}

// PeerOf returns the process that connected the socket (SO_PEERCRED, SO_PEERPIDFD: Linux 6.5). It says nothing about who holds
// the socket now: whoever hands a connected socket to another process hands over its identity with it.
func PeerOf(c *net.UnixConn) (*Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read peer: %w", err)
	}
	p := &Peer{fd: -1}
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = fmt.Errorf("SO_PEERCRED: %w", err)
			return
		}
		if p.fd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err != nil {
			failed = fmt.Errorf("SO_PEERPIDFD (needs Linux 6.5): %w", err)
			return
		}
		unix.CloseOnExec(p.fd)
		p.PID, p.UID, p.GID = int(cred.Pid), cred.Uid, cred.Gid
	})
	if err := errors.Join(err, failed); err != nil {
		p.Close()
		return nil, fmt.Errorf("read peer: %w", err)
	}
	if p.PID <= 0 {
		p.Close()
		return nil, errors.New("read peer: the process is in a pid namespace that cannot be seen from here")
	}
	return p, nil
}

// OpenPeer holds the process that has the number now.
func OpenPeer(pid int) (*Peer, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("%d is no process", pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	return &Peer{PID: pid, fd: fd}, nil
}

// Close lets go of the process. Closing twice is fine.
func (p *Peer) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}

// Kill ends the process, if the system lets us, and no other: its number may be another's by now. What has ended is no error.
func (p *Peer) Kill() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.fd < 0 {
		return errors.New("the process is not held any more")
	}
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// Alive returns nil while the process runs. An exited process is not alive, reaped or not.
func (p *Peer) Alive() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.fd < 0 {
		return errors.New("the connection is closed")
	}
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("watch process %d: %w", p.PID, err)
		case n != 0:
			return fmt.Errorf("process %d has ended", p.PID)
		}
		return nil
	}
}

// Descends returns nil if p is root, or was started by it through any number of processes that all still run. A process whose
// parent ended belongs to the system's first process and descends from nobody else.
func (p *Peer) Descends(root *Peer) error {
	child := p
	for range maxDepth {
		if child.PID == root.PID {
			// All alive at once: the number meant the same process on both sides.
			return errors.Join(p.Alive(), child.Alive(), root.Alive())
		}
		parent, err := parentOf(child)
		if err != nil {
			return err
		}
		defer parent.Close()
		child = parent
	}
	return errors.New("too many processes in between")
}

// parentOf holds the parent of a running process. The parent is read again after it is held: had it ended in between and its
// number gone to a stranger, the child would have another parent now.
func parentOf(child *Peer) (*Peer, error) {
	before, err := readStatus(child.PID)
	if err != nil {
		return nil, err
	}
	parent, err := OpenPeer(before.parent)
	if err != nil {
		return nil, err
	}
	after, err := readStatus(child.PID)
	if err == nil && after.parent != before.parent {
		err = fmt.Errorf("process %d lost its parent", child.PID)
	}
	if err = errors.Join(err, child.Alive(), parent.Alive()); err != nil {
		parent.Close()
		return nil, err
	}
	return parent, nil
}

// status is what /proc/PID/status says; ids are the effective ones.
type status struct {
	parent   int
	uid, gid uint32
	groups   []string
}

func readStatus(pid int) (status, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return status{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	return parseStatus(b)
}

// parseStatus reads lines of "Name:\tfields"; the four ids are real, effective, saved and file system. A process chooses its own
// Name, but the kernel escapes line ends in it.
func parseStatus(b []byte) (status, error) {
	var s status
	var errs []error
	seen := 0
	for line := range bytes.Lines(b) {
		key, rest, _ := strings.Cut(string(line), ":")
		f := strings.Fields(rest)
		switch {
		case key == "PPid" && len(f) == 1:
			n, err := strconv.ParseUint(f[0], 10, 31)
			s.parent, errs = int(n), append(errs, err)
		case key == "Uid" && len(f) == 4:
			n, err := strconv.ParseUint(f[1], 10, 32)
			s.uid, errs = uint32(n), append(errs, err)
		case key == "Gid" && len(f) == 4:
			n, err := strconv.ParseUint(f[1], 10, 32)
			s.gid, errs = uint32(n), append(errs, err)
		case key == "Groups":
			s.groups = slices.Clone(f)
			continue
		default:
			continue
		}
		seen++
	}
	if seen != 3 {
		return status{}, errors.New("the process's status is not understood")
	}
	return s, errors.Join(errs...)
}
