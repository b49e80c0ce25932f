// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/api"
	"remit/internal/cli/execcredential"
)

// What remit exec and the trampoline that becomes the child share: descriptors 3 and 4.
const (
	goFD      = 3 // a byte arrives when the server has measured the executable and knows the pid
	commandFD = 4 // the opened executable
)

func (a *app) execCommand() *cobra.Command {
	var run, as, perm string
	var given []string
	cmd := &cobra.Command{
		Use:     "exec --run RUN --as agent/NAME --for PERMISSION -- COMMAND [ARG...]",
		Short:   "Launch a command with an agent's identity and everything set up",
		Long:    "Launch COMMAND as an agent: with a Workload API socket of its own, a run token bound to this launch and, for a\nKubernetes target, a kubeconfig that asks Remit for the credential when the first request is made. For a PostgreSQL target what is\nlaunched is this program, which gets the login and becomes COMMAND (remit credential postgres). The agent's file\nsays who may launch which executable (launch: by, command). Exits as the child does.",
		Example: "  remit exec --run run-… --as agent/deploy --for apply -- kubectl apply -f foo.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.launch(c.Context(), api.Launch{Run: remit.RunID(run), Agent: remit.Name(as), For: perm}, given, args)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&run, "run", "", "the run")
	f.StringVar(&as, "as", "", "agent/NAME or tool/NAME")
	f.StringVar(&perm, "for", "", "the permission's name")
	f.StringArrayVar(&given, "arg", nil, "NAME=VALUE: an argument that the permission leaves open; VALUE is JSON, else a string")
	for _, name := range []string{"run", "as", "for"} {
		_ = cmd.MarkFlagRequired(name)
	}
	trampoline := &cobra.Command{Use: "child", Hidden: true, DisableFlagParsing: true, RunE: func(_ *cobra.Command, args []string) error {
		return becomeChild(args)
	}}
	cmd.AddCommand(trampoline)
	return cmd
}

// launch asks to launch the command, starts it and waits. The server measures it while it waits to be executed.
func (a *app) launch(ctx context.Context, l api.Launch, given, argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return badUse("%v", err)
	}
	file, err := os.Open(path) // what is measured is executed: by this descriptor, not by its name
	if err != nil {
		return badUse("%v", err)
	}
	defer file.Close()
	if isScript(file) {
		return badUse("%s is a script: what would run is its interpreter, which nobody measured", path).
			hint("launch a compiled program, or list the interpreter's digest and launch it with the script as its argument")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	if l.Program, err = filepath.Abs(path); err != nil {
		return badUse("%v", err)
	}
	l.Args = argv[1:]
	var launched api.Launched
	if err := client.Post(ctx, "/v1/launches", l, &launched); err != nil {
		return err
	}
	defer func() {
		_ = client.Post(context.WithoutCancel(ctx), "/v1/launches/"+string(launched.ID)+"/end", nil, nil)
	}()
	if launched.Streams != "" {
		return a.carryStreams(ctx, launched.Streams)
	}
	plugin := append([]string{"--for", l.For}, flags("--arg", given)...)
	home, err := childHome(&launched, plugin)
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	if launched.Client["type"] == "postgres" { // a login is needed before the command runs; its files are asked for by nobody
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this executable: %w", err)
		}
		if file, err = os.Open(self); err != nil {
			return fmt.Errorf("open this executable: %w", err)
		}
		defer file.Close()
		argv = slices.Concat([]string{self, "credential", "postgres"}, plugin, []string{"--", path}, argv[1:])
	}
	return a.runChild(ctx, client, &launched, file, home, argv)
}

// flags repeats a flag before each value.
func flags(name string, values []string) (out []string) {
	for _, v := range values {
		out = append(out, name, v)
	}
	return out
}

// childHome makes the folder with the child's run token and kubeconfig, readable by the child alone.
func childHome(l *api.Launched, plugin []string) (string, error) {
	home, err := os.MkdirTemp("", "remit-exec-")
	if err != nil {
		return "", fmt.Errorf("make the child's folder: %w", err)
	}
	files := map[string][]byte{"run-token": []byte(l.Token + "\n")}
	if server := l.Client["server"]; server != "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this executable: %w", err)
		}
		files["kubeconfig"] = kubeconfig(self, server, l.Client["ca"], l.Client["namespace"], plugin)
	}
	errs := []error{}
	for name, content := range files {
		errs = append(errs, os.WriteFile(filepath.Join(home, name), content, 0o600))
		if l.SetUID {
			errs = append(errs, os.Chown(filepath.Join(home, name), int(l.UID), int(l.UID)))
		}
	}
	if l.SetUID {
		errs = append(errs, os.Chown(home, int(l.UID), int(l.UID)))
	}
	if err := errors.Join(errs...); err != nil {
		_ = os.RemoveAll(home)
		return "", fmt.Errorf("write the child's files: %w", err)
	}
	return home, nil
}

// kubeconfig names the cluster and this program as the exec plugin that gets the credential. JSON is YAML.
func kubeconfig(self, server, ca, namespace string, plugin []string) []byte {
	type object = map[string]any
	b, _ := json.MarshalIndent(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "remit",
		"clusters": []any{object{"name": "remit", "cluster": object{"server": server, "certificate-authority-data": []byte(ca)}}},
		"contexts": []any{object{"name": "remit", "context": object{"cluster": "remit", "user": "remit", "namespace": namespace}}},
		"users": []any{object{"name": "remit", "user": object{"exec": object{
			"apiVersion": execcredential.Version, "command": self, "args": append([]string{"credential", "kubernetes"}, plugin...),
			"interactiveMode": "Never"}}}},
	}, "", " ")
	return b
}

func (a *app) runChild(ctx context.Context, client *api.Client, l *api.Launched, command *os.File, home string, argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	ready, release, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer ready.Close()
	defer release.Close()
	child := exec.Command(self, append([]string{"exec", "child"}, argv...)...)
	input, err := a.childStdio(child, l.SetUID)
	if err != nil {
		return err
	}
	child.ExtraFiles = []*os.File{ready, command} // become goFD and commandFD
	child.Env = childEnv(os.Environ(), l, home)
	if l.SetUID {
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: l.UID, Gid: l.UID, Groups: []uint32{}}}
	}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start the child: %w", err)
	}
	input()
	if err := client.Post(ctx, "/v1/launches/"+string(l.ID)+"/pid", api.LaunchPID{PID: child.Process.Pid, FD: commandFD}, nil); err != nil {
		_ = child.Process.Kill()
		_ = child.Wait()
		return err
	}
	stop := forwardSignals(child.Process)
	defer stop()
	_, _ = release.Write([]byte{1})
	if err := child.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		if exited, ok := errors.AsType[*exec.ExitError](err); ok {
			return &childError{code: exitCode(exited)}
		}
		return fmt.Errorf("wait for the child: %w", err)
	}
	return nil
}

// childStdio connects the child. One with a user of its own never gets the launcher's terminal: with the descriptor it could
// type into it (TIOCSTI), or read what is typed after the launch, and so give orders as the launcher (S2). It gets pipes, and
// a session of its own. feed is called once the child runs.
func (a *app) childStdio(child *exec.Cmd, apart bool) (feed func(), err error) {
	child.Stdin, child.Stdout, child.Stderr = a.in, a.out, a.err
	feed = func() {}
	//remit:guard S2 TestChildGetsNoTerminal
	if apart && isTerminal(a.in) {
		child.Stdin = nil
		in, err := child.StdinPipe()
		if err != nil {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		// Nobody waits for this goroutine: a read from a terminal cannot be ended. It goes with the process, right after the child.
		feed = func() { go func() { _, _ = io.Copy(in, a.in); _ = in.Close() }() }
	}
	//remit:guard S2 TestChildGetsNoTerminal
	if apart && isTerminal(a.out) {
		child.Stdout = struct{ io.Writer }{a.out}
	}
	//remit:guard S2 TestChildGetsNoTerminal
	if apart && isTerminal(a.err) {
		child.Stderr = struct{ io.Writer }{a.err}
	}
	child.WaitDelay = 2 * time.Second // a grandchild that keeps a pipe open does not keep us
	return feed, nil
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func isScript(f *os.File) bool {
	var head [2]byte
	_, err := f.ReadAt(head[:], 0)
	return err == nil && string(head[:]) == "#!"
}

func exitCode(e *exec.ExitError) int {
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return e.ExitCode()
}

// childEnv is ours without what would lead the child elsewhere: no operator's socket, no other kubeconfig. A child under a
// user of its own gets only what carries no secret: the launcher's tokens and agents' sockets are not its to have.
func childEnv(env []string, l *api.Launched, home string) []string {
	drop := []string{"KUBECONFIG=", "SPIFFE_ENDPOINT_SOCKET=", "REMIT_", "KUBERNETES_EXEC_INFO="}
	keep := []string{"PATH=", "LANG=", "LANGUAGE=", "LC_", "TZ=", "TERM=", "COLORTERM=", "NO_COLOR=", "SSL_CERT_FILE=", "SSL_CERT_DIR="}
	begins := func(e string) func(string) bool { return func(p string) bool { return strings.HasPrefix(e, p) } }
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		return slices.ContainsFunc(drop, begins(e)) || l.SetUID && !slices.ContainsFunc(keep, begins(e))
	})
	out = append(out, "SPIFFE_ENDPOINT_SOCKET=unix://"+l.Socket, envURL+"="+l.HTTPS, envRunToken+"="+filepath.Join(home, "run-token"))
	if l.Client["server"] != "" {
		out = append(out, "KUBECONFIG="+filepath.Join(home, "kubeconfig"))
	}
	if l.SetUID {
		out = append(out, "HOME="+home)
	}
	return out
}

// forwardSignals sends the child what is sent to us; where it shares our terminal it gets an interrupt twice, which does no harm.
func forwardSignals(p *os.Process) (stop func()) {
	signals := make(chan os.Signal, 4)
	done := make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case s := <-signals:
				_ = p.Signal(s)
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(signals); close(done); <-finished }
}

// becomeChild waits until the server knows this pid, then executes the measured file in its place; the pid stays.
func becomeChild(argv []string) error {
	ready := os.NewFile(goFD, "go")
	n, err := ready.Read(make([]byte, 1))
	if n != 1 {
		return fmt.Errorf("the launch was given up: %w", err)
	}
	_ = ready.Close()
	// Whatever else the launcher had open, such as a key file or a connection to the admin socket, stays behind (S2).
	//remit:guard S2 TestChildInheritsNothing
	err = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", commandFD), argv, os.Environ())
}
