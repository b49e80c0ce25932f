// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"remit"
)

// Bounds on what is hashed and remembered.
const (
	maxExecutable = 1 << 30 // bytes
	maxHashes     = 1024
)

// Workload is what was attested about a process: selectors in SPIRE's vocabulary, without "unix:". Path and SHA256 are empty
// unless they were asked for and could be read.
type Workload struct {
	UID, GID     uint32   // effective
	Groups       []string // supplementary, decimal
	Path, SHA256 string
	Level        remit.Level
}

// Map returns the attributes as records and rules know them.
func (w *Workload) Map() map[string]string {
	m := map[string]string{"uid": strconv.FormatUint(uint64(w.UID), 10), "gid": strconv.FormatUint(uint64(w.GID), 10)}
	if w.Path != "" {
		m["path"] = w.Path
	}
	if w.SHA256 != "" {
		m["sha256"] = w.SHA256
	}
	return m
}

// has reports whether the selector holds. A selector that is not known here holds for nobody.
func (w *Workload) has(selector string) bool {
	rest, ok := strings.CutPrefix(selector, "unix:")
	kind, value, _ := strings.Cut(rest, ":")
	if !ok || value == "" {
		return false
	}
	switch kind {
	case "uid":
		return value == strconv.FormatUint(uint64(w.UID), 10)
	case "gid":
		return value == strconv.FormatUint(uint64(w.GID), 10)
	case "supplementary_gid":
		for _, g := range w.Groups {
			if g == value {
				return true
			}
		}
	case "path":
		return value == w.Path
	case "sha256":
		return value == w.SHA256
	}
	return false
}

// Holds reports whether all selectors of one of the sets hold. An empty set holds for nobody.
func (w *Workload) Holds(sets []remit.Attestation) bool {
	for _, set := range sets {
		all := len(set.Selectors) > 0
		for _, s := range set.Selectors {
			all = all && w.has(s)
		}
		if all {
			return true
		}
	}
	return false
}

// Depth says how much of a process is read.
type Depth uint8

// The depths. Path and SHA256 need the right to inspect the process (CAP_SYS_PTRACE for another user's); without it they stay
// empty, so that selectors on them do not hold.
const (
	Credentials Depth = iota // user and groups
	WithPath                 // and the executable's path
	WithHash                 // and its digest
)

// DepthOf returns what must be read to judge the sets.
func DepthOf(sets []remit.Attestation) Depth {
	d := Credentials
	for _, set := range sets {
		for _, s := range set.Selectors {
			switch {
			case strings.HasPrefix(s, "unix:sha256:"):
				return WithHash
			case strings.HasPrefix(s, "unix:path:"):
				d = WithPath
			}
		}
	}
	return d
}

// Attestor says what a process is. It is safe for concurrent use.
type Attestor struct {
	// AllowOwnUID gives processes that run under the server's own user the level of any other user. That is WEAKER: such a
	// process can read the server's keys and memory. It is for a laptop or a demonstration under one user. Without it they have
	// LevelNone, however they were started (S3).
	AllowOwnUID bool

	mu     sync.Mutex // guards hashes
	hashes map[fileState]remit.Digest
}

// fileState names the content of a file that only root can write to: writing to it moves mtime and ctime, which nobody can set
// back both. It names no other file's content: who once stored through a shared mapping of his file stores again through it, and
// moves neither.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
	rootOnly     bool
}

// Attest reads what the process is now. It is to be called at every use of an identity: execve keeps the number and changes the
// program. The recipe is free of races: the process is alive after everything was read, so the number was its own all along. A
// process whose user or group is no longer the one that connected is refused.
func (a *Attestor) Attest(p *Peer, depth Depth) (Workload, error) {
	if err := p.Alive(); err != nil {
		return Workload{}, err
	}
	s, err := readStatus(p.PID)
	if err != nil {
		return Workload{}, err
	}
	w := Workload{UID: s.uid, GID: s.gid, Groups: s.groups, Level: remit.LevelUser}
	if depth >= WithPath {
		w.Path = executable(p.PID)
	}
	if depth >= WithHash && w.Path != "" {
		w.SHA256 = a.hash(procLink(p.PID, "exe"))
	}
	if err := p.Alive(); err != nil {
		return Workload{}, err
	}
	//remit:guard S3 TestChangedUser
	if s.uid != p.UID || s.gid != p.GID {
		return Workload{}, fmt.Errorf("process %d changed its user or group since it connected", p.PID)
	}
	//remit:guard S3 TestRecordsAndLevels internal/identity/workloadapi
	if (int(s.uid) == os.Geteuid() || s.uid == 0) && !a.AllowOwnUID { // root can read the server's keys, too
		w.Level = remit.LevelNone
	}
	return w, nil
}

// executable returns the path of the running program, or "" if it cannot be read or does not lead to the same file from here: a
// process in a mount namespace of its own can give any program any path.
func executable(pid int) string {
	link := procLink(pid, "exe")
	path, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	running, err1 := os.Stat(link)
	there, err2 := os.Stat(path)
	//remit:guard S3 TestPathInOwnNamespace
	if err1 != nil || err2 != nil || !os.SameFile(running, there) {
		return ""
	}
	return path
}

func procLink(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// Executable is a program as it was measured.
type Executable struct {
	Path   string
	Digest remit.Digest
	state  fileState
}

// Untouched reports whether the two measurements are of one file with one content, and no write was seen between them: not even
// by somebody who wrote the old content back.
func (e *Executable) Untouched(since *Executable) bool {
	return e.state == since.state && e.Digest == since.Digest
}

// Measure reads what the process runs (fd 0), or the file that it holds open at fd and will run. The process is alive after
// everything was read, so the number was its own all along.
func (a *Attestor) Measure(p *Peer, fd int) (Executable, error) {
	link := procLink(p.PID, "exe")
	if fd > 0 {
		link = procLink(p.PID, "fd/"+strconv.Itoa(fd))
	}
	if err := p.Alive(); err != nil {
		return Executable{}, err
	}
	e, err := a.measure(link)
	if errors.Is(err, fs.ErrPermission) {
		return Executable{}, fmt.Errorf("the server may not see what process %d runs: give it CAP_SYS_PTRACE: %w", p.PID, err)
	}
	if err != nil {
		return Executable{}, fmt.Errorf("measure what process %d runs: %w", p.PID, err)
	}
	return e, p.Alive()
}

// hash returns the digest of the file in hex, or "".
func (a *Attestor) hash(link string) string {
	e, err := a.measure(link)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(string(e.Digest), "sha256:")
}

// measure reads and hashes a file, 19 ms for 21 MB: once per content where only root can write to it, else each time. What runs
// cannot be written to (ETXTBSY), so the digest of a running file is that of what runs.
func (a *Attestor) measure(link string) (Executable, error) {
	path, err := os.Readlink(link)
	if err != nil {
		return Executable{}, err
	}
	f, err := os.OpenFile(link, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0) // it may be a pipe: nothing waits here
	if err != nil {
		return Executable{}, err
	}
	defer f.Close()
	before, err := stateOf(f)
	if err != nil {
		return Executable{}, err
	}
	a.mu.Lock()
	known, ok := a.hashes[before]
	a.mu.Unlock()
	//remit:guard S4 TestStoreThroughAMapping
	if !before.rootOnly {
		ok = false
	}
	if ok {
		return Executable{path, known, before}, nil
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, before.size); err != nil {
		return Executable{}, err
	}
	if after, err := stateOf(f); err != nil || after != before {
		return Executable{}, errors.New("the file changed while it was read")
	}
	sum := remit.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
	a.remember(before, sum)
	return Executable{path, sum, before}, nil
}

func (a *Attestor) remember(state fileState, sum remit.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hashes == nil || len(a.hashes) >= maxHashes {
		a.hashes = map[fileState]remit.Digest{}
	}
	a.hashes[state] = sum
}

func stateOf(f *os.File) (fileState, error) {
	info, err := f.Stat()
	if err != nil {
		return fileState{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Size() > maxExecutable {
		return fileState{}, errors.New("no regular file of acceptable size")
	}
	var on unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &on); err != nil {
		return fileState{}, err
	}
	//remit:guard S4 TestFuseIsNotMeasured internal/identity
	if int64(on.Type) == unix.FUSE_SUPER_MAGIC {
		return fileState{}, errors.New("it is on FUSE: any user can mount one, and show a different content each time")
	}
	return fileState{uint64(st.Dev), st.Ino, info.Size(), st.Mtim, st.Ctim, st.Uid == 0 && st.Mode&0o022 == 0}, nil
}
