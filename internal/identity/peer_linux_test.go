// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/identity"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv("REMIT_TEST_HELPER"); mode != "" {
		helper(mode)
		return
	}
	os.Exit(m.Run())
}

// helper connects to the socket, and then does what a bad process might.
func helper(mode string) {
	if mode == "serve" {
		serve()
		return
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) // without CLOEXEC
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("SOCKET")})
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("connected")
	_, _ = in.ReadString('\n')
	switch mode {
	case "exec": // another program takes its place, with the connection
		_ = unix.Exec("/bin/sleep", []string{"sleep", "60"}, nil)
	case "setuid":
		fmt.Println(unix.Setresgid(4002, 4002, 4002), unix.Setresuid(4002, 4002, 4002))
	case "inherit": // the child keeps the connection, the parent ends
		c := exec.Command("/bin/sleep", "5")
		c.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "socket")}
		fmt.Println(c.Start())
		return
	}
	_, _ = in.ReadString('\n')
}

// peer is a helper process and the server's end of its connection.
type peer struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	conn *net.UnixConn
	*identity.Peer
}

func connect(t *testing.T, mode string) *peer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &peer{t: t, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = []string{"REMIT_TEST_HELPER=" + mode, "SOCKET=" + path}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	if p.conn, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.conn.Close() })
	if p.Peer, err = identity.PeerOf(p.conn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Peer.Close)
	p.line()
	return p
}

func (p *peer) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

func (p *peer) proceed() { _, _ = io.WriteString(p.in, "\n") }

func TestPeer(t *testing.T) {
	p := connect(t, "wait")
	a := &identity.Attestor{}
	w, err := a.Attest(p.Peer, identity.WithHash)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != p.cmd.Process.Pid || w.Path != self || len(w.SHA256) != 64 || int(w.UID) != os.Geteuid() || w.Level != remit.LevelNone {
		t.Errorf("%+v", w)
	}
	if again, err := a.Attest(p.Peer, identity.WithHash); err != nil || again.SHA256 != w.SHA256 {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	if w, err := (&identity.Attestor{AllowOwnUID: true}).Attest(p.Peer, identity.Credentials); err != nil || w.Level != remit.LevelUser || w.Path != "" {
		t.Errorf("own user allowed: %+v, %v", w, err)
	}
	p.Close()
	if _, err := a.Attest(p.Peer, identity.Credentials); err == nil {
		t.Error("attested after close")
	}
}

// TestExecAfterConnect: the number stays, the program does not; it is attested anew at each use.
func TestExecAfterConnect(t *testing.T) {
	p := connect(t, "exec")
	a := &identity.Attestor{}
	before, err := a.Attest(p.Peer, identity.WithHash)
	if err != nil {
		t.Fatal(err)
	}
	p.proceed()
	for range 1000 {
		after, err := a.Attest(p.Peer, identity.WithHash)
		if err != nil {
			t.Fatal(err)
		}
		if after.Path != before.Path && after.SHA256 != before.SHA256 && after.Path != "" {
			return
		}
		unixSleep()
	}
	t.Error("the new program was never seen")
}

func unixSleep() { _ = unix.Nanosleep(&unix.Timespec{Nsec: 2e6}, nil) }

func TestExitedPeer(t *testing.T) {
	for _, reaped := range []bool{false, true} {
		p := connect(t, "wait")
		_ = p.cmd.Process.Kill()
		if reaped {
			_ = p.cmd.Wait()
		} else {
			for p.Alive() == nil { // a zombie
				unixSleep()
			}
		}
		if _, err := (&identity.Attestor{}).Attest(p.Peer, identity.Credentials); err == nil {
			t.Errorf("reaped %v: a dead process was attested", reaped)
		}
		if late, err := identity.PeerOf(p.conn); err == nil {
			if _, err := (&identity.Attestor{}).Attest(late, identity.Credentials); err == nil {
				t.Errorf("reaped %v: a dead process was attested from its socket", reaped)
			}
			late.Close()
		}
	}
}

// TestInheritedConnection: who holds the connection of a process that ended has no identity (pitfall: the peer is who connected).
func TestInheritedConnection(t *testing.T) {
	p := connect(t, "inherit")
	p.proceed()
	if got := p.line(); got != "<nil>" {
		t.Fatal(got)
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	for range 500 {
		if p.Alive() != nil {
			break
		}
		unixSleep()
	}
	if _, err := (&identity.Attestor{}).Attest(p.Peer, identity.Credentials); err == nil {
		t.Error("the child was attested as its parent")
	}
}

func TestChangedUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	p := connect(t, "setuid")
	p.proceed()
	if got := p.line(); got != "<nil> <nil>" {
		t.Fatal(got)
	}
	if w, err := (&identity.Attestor{}).Attest(p.Peer, identity.Credentials); err == nil {
		t.Errorf("connected as root, then became %d: attested", w.UID)
	}
}

// TestPathInOwnNamespace: whoever mounts their own program over a trusted path has no path.
func TestPathInOwnNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount here")
	}
	trusted := filepath.Join(t.TempDir(), "trusted")
	if err := os.WriteFile(trusted, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind /bin/sleep "$0" && exec "$0" 60`, trusted)
	if err := cmd.Start(); err != nil {
		t.Skipf("no unshare here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := identity.OpenPeer(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 1000 {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
		if link == trusted {
			w, err := (&identity.Attestor{}).Attest(p, identity.WithPath)
			if err != nil || w.Path != "" {
				t.Errorf("path %q, %v", w.Path, err)
			}
			return
		}
		if p.Alive() != nil {
			t.Skip("the mount is not possible here")
		}
		unixSleep()
	}
	t.Skip("the program under the other name was not seen")
}

func TestNoDescriptorLeaks(t *testing.T) {
	p := connect(t, "wait")
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	self, err := identity.OpenPeer(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	before := count()
	for range 100 {
		q, err := identity.PeerOf(p.conn)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Descends(self); err != nil {
			t.Fatal(err)
		}
		if err := self.Descends(q); err == nil {
			t.Fatal("a parent descends from its child")
		}
		q.Close()
		q.Close()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestPeerOfUnseenNamespace: the server runs in a pid namespace in which its caller has no number.
func TestPeerOfUnseenNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a pid namespace here")
	}
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"REMIT_TEST_HELPER=serve", "SOCKET=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no pid namespace here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "listening" {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !lines.Scan() || !strings.Contains(lines.Text(), "refused") {
		t.Errorf("a caller without a number: %q", lines.Text())
	}
}

// serve accepts one connection and says what it thinks of the caller.
func serve() {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: os.Getenv("SOCKET")})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("listening")
	c, err := l.AcceptUnix()
	if err != nil {
		fmt.Println(err)
		return
	}
	if p, err := identity.PeerOf(c); err != nil {
		fmt.Println("refused:", err)
	} else {
		fmt.Println("accepted", p.PID)
	}
}
