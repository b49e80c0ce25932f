// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/identity"
)

func self(t *testing.T) *identity.Peer {
	t.Helper()
	p, err := identity.OpenPeer(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// TestMeasure: what runs, what an open descriptor is, and nothing that could make the server wait.
func TestMeasure(t *testing.T) {
	a, p := &identity.Attestor{}, self(t)
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if e, err := a.Measure(p, 0); err != nil || e.Digest != remit.DigestOf(own) || !filepath.IsAbs(e.Path) {
		t.Errorf("%+v %v", e, err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first, err := a.Measure(p, int(f.Fd()))
	if err != nil || first.Digest != remit.DigestOf([]byte("one")) || first.Path != path {
		t.Errorf("%+v %v", first, err)
	}
	if err := os.WriteFile(path, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := a.Measure(p, int(f.Fd())); err != nil || e.Digest != remit.DigestOf([]byte("two")) || e.Untouched(&first) {
		t.Errorf("written to: %+v %v", e, err)
	}
	if err := unix.Mkfifo(path+".fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path+".fifo", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	for _, fd := range []int{int(pipe.Fd()), 1 << 20, -1} {
		if e, err := a.Measure(p, fd); err == nil && fd > 0 {
			t.Errorf("descriptor %d: %+v", fd, e)
		}
	}
}

// TestStoreThroughAMapping: S4. A store through a mapping that is dirty already moves neither mtime nor ctime.
func TestStoreThroughAMapping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o620); err != nil { // somebody else than root may write to it, whoever runs the test
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	shared, err := unix.Mmap(int(f.Fd()), 0, 3, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(shared) }()
	copy(shared, "ONE") // dirty from here on
	a, p := &identity.Attestor{}, self(t)
	first, err := a.Measure(p, int(f.Fd()))
	if err != nil || first.Digest != remit.DigestOf([]byte("ONE")) {
		t.Fatalf("%+v %v", first, err)
	}
	copy(shared, "two")
	if e, err := a.Measure(p, int(f.Fd())); err != nil || e.Digest != remit.DigestOf([]byte("two")) || e.Untouched(&first) {
		t.Errorf("stored through a mapping: %+v %v", e, err)
	}
}

// TestFuseIsNotMeasured: S4. Any user can mount a FUSE file system, which answers each read as it likes.
func TestFuseIsNotMeasured(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a FUSE file system is mounted by root only, without a helper")
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("this machine has no FUSE")
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd := int(dev.Fd()) // taken here: the server's goroutine must not touch the file that is closed under it
	options := fmt.Sprintf("fd=%d,rootmode=100755,user_id=0,group_id=0", fd)
	if err := unix.Mount("test", path, "fuse", 0, options); err != nil {
		t.Skip("this machine mounts no FUSE")
	}
	done := make(chan struct{})
	go func() { defer close(done); serveFuse(fd) }()
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		_ = dev.Close()
		<-done
	})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if e, err := (&identity.Attestor{}).Measure(self(t), int(f.Fd())); err == nil || !strings.Contains(err.Error(), "FUSE") {
		t.Errorf("measured %+v, %v", e, err)
	}
}

// serveFuse is the least file system: one file, "hello". It ends with the device. (Linux, fuse.h, protocol 7.31.)
func serveFuse(dev int) {
	in := make([]byte, 1<<17)
	for {
		n, err := unix.Read(dev, in)
		if err != nil || n < 40 {
			return
		}
		var out []byte
		failed := int32(0)
		switch binary.LittleEndian.Uint32(in[4:]) {
		case 26: // INIT
			out = make([]byte, 64)
			binary.LittleEndian.PutUint32(out, 7)
			binary.LittleEndian.PutUint32(out[4:], 31)
			binary.LittleEndian.PutUint32(out[20:], 4096) // max_write
		case 3: // GETATTR
			out = make([]byte, 104)
			binary.LittleEndian.PutUint64(out[16:], 1)        // ino
			binary.LittleEndian.PutUint64(out[24:], 5)        // size
			binary.LittleEndian.PutUint32(out[76:], 0o100755) // mode
			binary.LittleEndian.PutUint32(out[80:], 1)        // nlink
		case 14: // OPEN
			out = make([]byte, 16)
		case 15: // READ
			out = []byte("hello")
		case 17: // STATFS
			out = make([]byte, 80)
		default:
			failed = -int32(unix.ENOSYS)
		}
		head := make([]byte, 16, 16+len(out))
		binary.LittleEndian.PutUint32(head, uint32(16+len(out)))
		binary.LittleEndian.PutUint32(head[4:], uint32(failed))
		copy(head[8:], in[8:16]) // unique
		if _, err := unix.Write(dev, append(head, out...)); err != nil {
			return
		}
	}
}
