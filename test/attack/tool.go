// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

// toolDir holds a copy of this program that every user can execute: what an attacker does on the host under another user, or
// as a launched agent, is done by a process of that user.
var toolDir, toolPath string

func makeTool() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	if toolDir, err = os.MkdirTemp("", "remit-tool-"); err != nil {
		return err
	}
	toolPath = filepath.Join(toolDir, "tool")
	return errors.Join(os.Chmod(toolDir, 0o755), os.WriteFile(toolPath, b, 0o755))
}

// asUser runs the tool as a user; nil is one's own.
func asUser(ctx context.Context, uid *int, env []string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, toolPath, append([]string{"tool"}, args...)...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), env...)
	if uid != nil && *uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(*uid), Gid: uint32(*uid), Groups: []uint32{}}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s: %w", strings.TrimSpace(errs.String()), err)
	}
	return out.Bytes(), nil
}

// toolMain is the program as an attacker's tool.
func toolMain(args []string) int {
	if len(args) == 0 {
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tools := map[string]func(context.Context, []string) error{"x509": toolX509, "jwt": toolJWT, "admin": toolAdmin, "read": toolRead,
		"svid": toolSVID, "child": toolChild, "descriptors": toolDescriptors, "terminal": toolTerminal, "environment": toolEnvironment,
		"token": toolToken}
	do, ok := tools[args[0]]
	if !ok {
		return 2
	}
	if err := do(ctx, args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// fetched is an X.509-SVID with its key: what a stolen process holds.
type fetched struct {
	ID    string `json:"id"`
	Chain string `json:"chain"`
	Key   string `json:"key"`
}

// toolX509 SOCKET PATH: the SVID whose ID ends in /PATH; or the first.
func toolX509(ctx context.Context, args []string) error {
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+args[0]))
	if err != nil {
		return refusal(err)
	}
	for _, svid := range x.SVIDs {
		if len(args) > 1 && svid.ID.Path() != "/"+args[1] {
			continue
		}
		chain, key, err := svid.Marshal()
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(fetched{svid.ID.String(), string(chain), string(key)})
	}
	return fmt.Errorf("NotFound: no identity %s", args[1:])
}

// toolJWT SOCKET AUDIENCE [ID]: a JWT-SVID.
func toolJWT(ctx context.Context, args []string) error {
	p := jwtsvid.Params{Audience: args[1]}
	if len(args) > 2 && args[2] != "" {
		id, err := spiffeid.FromString(args[2])
		if err != nil {
			return err
		}
		p.Subject = id
	}
	svid, err := workloadapi.FetchJWTSVID(ctx, p, workloadapi.WithAddr("unix://"+args[0]))
	if err != nil {
		return refusal(err)
	}
	fmt.Println(svid.Marshal())
	return nil
}

// refusal writes the gRPC code in front, as a status is written.
func refusal(err error) error {
	return fmt.Errorf("%s: %w", status.Code(err), err)
}

// toolAdmin SOCKET METHOD PATH BODY: a management call; the first line is the status.
func toolAdmin(ctx context.Context, args []string) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", args[0])
	}}}
	req, err := http.NewRequestWithContext(ctx, args[1], "http://admin"+args[2], strings.NewReader(args[3]))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	fmt.Println(res.StatusCode)
	_, err = io.Copy(os.Stdout, res.Body)
	return err
}

// toolRead FILE…: succeeds if it can open one of them.
func toolRead(_ context.Context, args []string) error {
	var all []error
	for _, name := range args {
		b, err := os.ReadFile(name)
		if err == nil {
			fmt.Println("read", len(b), "bytes of", name)
			return nil
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// toolSVID: the identity that the environment's socket gives this process.
func toolSVID(ctx context.Context, _ []string) error {
	x, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		return refusal(err)
	}
	fmt.Println(x.DefaultSVID().ID)
	return nil
}

// toolChild ARG…: the same tool, by a child of this process.
func toolChild(ctx context.Context, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"tool"}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// toolDescriptors: fails if nothing but the standard three is open; what is open is written.
func toolDescriptors(context.Context, []string) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || e.Name() == "0" || e.Name() == "1" || e.Name() == "2" || strings.HasPrefix(to, "/sys/fs/cgroup/") || strings.Contains(to, "/proc/") || strings.HasPrefix(to, "anon_inode:[") {
			continue
		}
		found = true
		fmt.Println(e.Name(), to)
	}
	if !found {
		return errors.New("no descriptor of the launcher is open")
	}
	return nil
}

// toolTerminal: types a letter into the terminal that it was started from (TIOCSTI), as if the operator had: by each of its descriptors, and by
// the name that every process has for its terminal.
func toolTerminal(context.Context, []string) error {
	fds := []int{0, 1, 2}
	var all []error
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		fds = append(fds, int(tty.Fd()))
	} else {
		all = append(all, err)
	}
	c := byte('x')
	for _, fd := range fds {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCSTI, uintptr(unsafe.Pointer(&c))) //nolint:gosec // the call takes an address
		if errno == 0 {
			fmt.Println("typed into the launcher's terminal")
			return nil
		}
		all = append(all, fmt.Errorf("TIOCSTI %d: %w", fd, errno))
	}
	return errors.Join(all...)
}

// toolEnvironment NAME…: succeeds if one of the variables is set.
func toolEnvironment(_ context.Context, args []string) error {
	for _, name := range args {
		if v, ok := os.LookupEnv(name); ok {
			fmt.Println("found", name, v)
			return nil
		}
	}
	return errors.New("none of the launcher's secrets is in the environment")
}

// toolToken [stay]: prints the run token of a launch, and the launch's socket, for whoever steals them.
func toolToken(_ context.Context, args []string) error {
	b, err := os.ReadFile(os.Getenv("REMIT_RUN_TOKEN_FILE"))
	fmt.Println("token", strings.TrimSpace(string(b)))
	fmt.Println("socket", strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://"))
	if len(args) > 0 {
		time.Sleep(time.Minute) // until it is ended
	}
	return err
}
