// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"remit/internal/api"
)

// TestMain lets the test's binary be the trampoline, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "exec" && os.Args[2] == "child" {
		fmt.Fprintln(os.Stderr, becomeChild(os.Args[3:]))
		os.Exit(1)
	}
	if text := os.Getenv(envTestLogin); text != "" {
		fmt.Fprintln(os.Stderr, executeLogin(text, os.Args[1:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// terminal opens a pseudo-terminal and returns the side that a shell has.
func terminal(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return slave
}

// S2: whoever has the operator's terminal can type into it, and so give orders as the operator.
func TestChildGetsNoTerminal(t *testing.T) {
	tty := terminal(t)
	for _, apart := range []bool{true, false} {
		child := exec.Command("/bin/true")
		if _, err := (&app{in: tty, out: tty, err: tty}).childStdio(child, apart); err != nil {
			t.Fatal(err)
		}
		has := child.Stdin == tty || child.Stdout == tty || child.Stderr == tty
		if has == apart {
			t.Errorf("a user of its own: %v; the terminal is handed over: %v", apart, has)
		}
	}
}

// S2: a key file or a connection that the launcher has open without close-on-exec does not reach the agent.
func TestChildInheritsNothing(t *testing.T) {
	secret, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	list, err := exec.LookPath("ls")
	if err != nil {
		t.Fatal(err)
	}
	if list, err = filepath.EvalSymlinks(list); err != nil {
		t.Fatal(err)
	}
	command, err := os.Open(list)
	if err != nil {
		t.Fatal(err)
	}
	defer command.Close()
	ready, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	if _, err := release.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	defer release.Close()
	child := exec.Command(os.Args[0], "exec", "child", "ls", "/proc/self/fd")
	child.ExtraFiles = []*os.File{ready, command, secret}
	out, err := child.Output()
	if err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	if got := strings.Fields(string(out)); slices.Contains(got, "4") || slices.Contains(got, "5") { // 3 is the directory itself
		t.Errorf("the child has descriptors %q", got)
	}
}

// TestChildEnvironment: a launched agent gets its own socket and token, and none of the launcher's secrets.
func TestChildEnvironment(t *testing.T) {
	mine := []string{"PATH=/bin", "LC_ALL=C", "HOME=/root", "AWS_SECRET_ACCESS_KEY=x", "GITHUB_TOKEN=x", "SSH_AUTH_SOCK=/s", "KUBECONFIG=/admin",
		"REMIT_SERVER=unix:///admin.sock", "SPIFFE_ENDPOINT_SOCKET=unix:///other", "LD_PRELOAD=/x.so", "HTTPS_PROXY=http://user:pass@proxy"}
	l := &api.Launched{Socket: "/l.sock", HTTPS: "https://localhost", SetUID: true, UID: 4001}
	got := childEnv(mine, l, "/home")
	want := []string{"PATH=/bin", "LC_ALL=C", "SPIFFE_ENDPOINT_SOCKET=unix:///l.sock", "REMIT_URL=https://localhost",
		"REMIT_RUN_TOKEN_FILE=/home/run-token", "HOME=/home"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("with a user of its own: %q", got)
	}
	l.SetUID = false // the same user could read the launcher's environment anyway
	for _, e := range childEnv(mine, l, "/home") {
		if strings.Contains(e, "admin") || strings.Contains(e, "other") {
			t.Errorf("as the launcher's user: %q", e)
		}
	}
}
