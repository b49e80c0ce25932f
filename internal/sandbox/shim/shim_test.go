// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"remit/internal/sandbox/shim"
)

// TestMain is the shim under its name, a tool under its own, and the tests else.
func TestMain(m *testing.M) {
	shim.Dispatch()
	if filepath.Base(os.Args[0]) == "tool" {
		os.Exit(tool(os.Args[1]))
	}
	os.Exit(m.Run())
}

// tool asks a server through the proxy of its environment, echoes its input and ends with the code that it got.
func tool(url string) int {
	resp, err := http.Get(url) //nolint:gosec // of a test
	if err != nil {
		fmt.Println("error:", err)
		return 9
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	b, _ := io.ReadAll(resp.Body)
	in, _ := io.ReadAll(os.Stdin)
	fmt.Printf("%d %s %s\n", resp.StatusCode, b, in)
	return resp.StatusCode - 200 + 3
}

func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{shim.Name, "tool"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestTool: what a tool asks arrives at the socket, input and output are its own, and its exit code is the shim's.
func TestTool(t *testing.T) {
	ln, err := net.Listen("tcp", shim.Listen)
	if err != nil {
		t.Skipf("the shim's port is taken on this host, where there is no box: %v", err)
	}
	_ = ln.Close()
	dir := folder(t)
	sock, err := net.Listen("unix", filepath.Join(dir, shim.Socket))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "asked for "+r.URL.String()) })} //nolint:gosec // a test
	go func() { _ = srv.Serve(sock) }()
	t.Cleanup(func() { _ = srv.Close() })
	cmd := exec.Command(filepath.Join(dir, shim.Name), dir, filepath.Join(dir, "tool"), "http://api.test/x") //nolint:gosec // a test
	cmd.Stdin = strings.NewReader("input")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 3 || string(out) != "200 asked for http://api.test/x input\n" {
		t.Errorf("%v %q", err, out)
	}
	if ln, err = net.Listen("tcp", shim.Listen); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()                                                    //nolint:errcheck // a test
	cmd = exec.Command(filepath.Join(dir, shim.Name), dir, "/bin/true") //nolint:gosec // a test
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 126 {
		t.Errorf("a port that is taken: %v", cmd.ProcessState)
	}
	cmd = exec.Command(filepath.Join(dir, shim.Name), shim.Answered, dir, "/bin/true") //nolint:gosec // a test
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("a port at which somebody answers: %v", cmd.ProcessState)
	}
	_ = ln.Close()
	cmd = exec.Command(filepath.Join(dir, shim.Name), dir, "/bin/sh", "-c", "kill -9 $$") //nolint:gosec // a test
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 137 {
		t.Errorf("a killed tool: %v", cmd.ProcessState)
	}
	cmd = exec.Command(filepath.Join(dir, shim.Name), dir, "/nonexistent") //nolint:gosec // a test
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 127 {
		t.Errorf("a missing tool: %v", cmd.ProcessState)
	}
}

// TestEnviron: both cases of the proxy variables replace what stood there, and the authority only where there is one.
func TestEnviron(t *testing.T) {
	dir := folder(t)
	env := shim.Environ([]string{"PATH=/bin", "https_proxy=http://evil.example", "SSL_CERT_FILE=/x"}, dir)
	for _, want := range []string{"PATH=/bin", "https_proxy=http://" + shim.Listen, "HTTP_PROXY=http://" + shim.Listen, "SSL_CERT_FILE=/x"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %v", want, env)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, shim.CA), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env = shim.Environ([]string{"SSL_CERT_FILE=/x"}, dir)
	if slices.Contains(env, "SSL_CERT_FILE=/x") || !slices.Contains(env, "NODE_EXTRA_CA_CERTS="+filepath.Join(dir, shim.CA)) {
		t.Error(env)
	}
}

// TestUsage: without a command there is nothing to run.
func TestUsage(t *testing.T) {
	var b bytes.Buffer
	if code := shim.Main([]string{"/x"}, &b); code != 2 || !strings.Contains(b.String(), "usage") {
		t.Error(code, b.String())
	}
}
