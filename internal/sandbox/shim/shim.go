// SPDX-License-Identifier: Apache-2.0

// Package shim is what stands between a tool and the egress proxy inside a sandbox: it listens on the box's own loopback, copies to the
// one socket that leads out, points the usual variables there, and runs the tool as its child. It holds no authority: a tool that
// dials the socket itself gains nothing, and one that ignores the variables reaches nobody.
//
// It is this program under the name remit-shim: mount the program so, and run
//
//	remit-shim [-answered] FOLDER COMMAND [ARGUMENT…]
//
// With -answered the proxy itself listens on the box's loopback, as it can where that is the host's kernel's, and nothing is copied.
// FOLDER holds egress.sock, in the sandbox of an agent gateway.sock, which leads to Remit, and, where the tool has to trust the box's authority, ca.pem.
package shim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
)

// The names that the shim and whoever prepares the box agree on.
const (
	Name   = "remit-shim"
	Socket = "egress.sock"
	CA     = "ca.pem"
	Listen = "127.0.0.1:3128"
	// Gateway is the socket that leads to Remit itself, where the box has one, and GatewayListen where it is reached in the box.
	Gateway       = "gateway.sock"
	GatewayListen = "127.0.0.1:3129"
	// Answered is the flag for a box in which somebody else answers at Listen.
	Answered = "-answered"
)

const maxConnections = 128

// Dispatch runs the shim, and does not return, if this process was started as one.
func Dispatch() {
	if filepath.Base(os.Args[0]) == Name {
		os.Exit(Main(os.Args[1:], os.Stderr))
	}
}

// Main runs the command behind the shim and returns its exit code; 126 and 127 are a shell's: it could not be run, or was not found.
func Main(args []string, stderr io.Writer) int {
	answered := len(args) > 0 && args[0] == Answered
	if answered {
		args = args[1:]
	}
	if len(args) < 2 {
		fmt.Fprintln(stderr, Name+": usage: "+Name+" ["+Answered+"] FOLDER COMMAND [ARGUMENT…]")
		return 2
	}
	debug.SetGCPercent(20) // it copies bytes: memory is the tool's
	ways := map[string]string{}
	if !answered {
		ways[Listen] = filepath.Join(args[0], Socket)
	}
	if gateway := filepath.Join(args[0], Gateway); exists(gateway) {
		ways[GatewayListen] = gateway
	}
	for at, socket := range ways {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			fmt.Fprintln(stderr, Name+": listen in the box:", err)
			return 126
		}
		go serve(ln, socket)
	}
	p, err := os.StartProcess(args[1], args[1:], &os.ProcAttr{Env: Environ(os.Environ(), args[0]), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Fprintln(stderr, Name+": start the tool:", err)
		if errors.Is(err, fs.ErrNotExist) {
			return 127
		}
		return 126
	}
	_ = os.Stdin.Close() // the tool's alone
	forward := make(chan os.Signal, 8)
	signal.Notify(forward, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range forward {
			_ = p.Signal(s)
		}
	}()
	debug.FreeOSMemory()
	return wait(p.Pid)
}

// wait reaps whatever ends until the tool does: the shim is the first process of the box, and inherits the tool's orphans.
func wait(tool int) int {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 126
		case pid != tool:
		case status.Signaled():
			return 128 + int(status.Signal())
		case status.Exited():
			return status.ExitStatus()
		}
	}
}

// Environ adds to env where the proxy is and what to trust.
func Environ(env []string, folder string) []string {
	set := map[string]string{}
	// ALL_PROXY is HTTP, too: many clients that know the variable know no SOCKS, and refuse to start.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		set[name], set[strings.ToLower(name)] = "http://"+Listen, "http://"+Listen
	}
	set["NO_PROXY"], set["no_proxy"] = "localhost,127.0.0.1,::1", "localhost,127.0.0.1,::1" // the box's own
	set["NODE_USE_ENV_PROXY"] = "1"
	if ca := filepath.Join(folder, CA); readable(ca) {
		for _, name := range []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE", "DENO_CERT"} {
			set[name] = ca
		}
	}
	var out []string
	for _, e := range env {
		if name, _, _ := strings.Cut(e, "="); set[name] == "" {
			out = append(out, e)
		}
	}
	for name, value := range set {
		out = append(out, name+"="+value)
	}
	return out
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func readable(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// serve copies each connection to the socket, for as long as the process lives.
func serve(ln net.Listener, socket string) {
	slots := make(chan struct{}, maxConnections)
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			join(c.(*net.TCPConn), socket)
		}()
	}
}

func join(c *net.TCPConn, socket string) {
	defer c.Close() //nolint:errcheck // it is over
	out, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer out.Close() //nolint:errcheck // it is over
	up := out.(*net.UnixConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(c, up)
		_ = c.CloseWrite()
		_ = c.CloseRead() // nobody answers any more
	}()
	carry(up, c)
	_ = up.CloseWrite()
	<-done
}

// carry copies until either end is over. The kernel's own copying (splice) is for long streams: a request is short, and costs more
// system calls so, each of which is dear in gVisor.
func carry(to io.Writer, from io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 16<<10))
}
