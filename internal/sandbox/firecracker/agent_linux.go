// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

// AgentName is what this program is called in a root image: the kernel of the virtual machine starts it as the first process.
const AgentName = "remit-guest"

const (
	nobody    = 65534
	filesDisk = "/dev/vdb"
)

// Dispatch becomes the first process of a virtual machine if this process is one, and then does not return.
func Dispatch() {
	if filepath.Base(os.Args[0]) != AgentName || os.Getpid() != 1 {
		return
	}
	a := Agent{Dial: dialVsock, Disk: filesDisk, VMStat: "/proc/vmstat"}
	if err := a.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", AgentName, err)
	}
	// The machine ends with its first process. Firecracker takes a restart for the end.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1)
}

// Agent is the first process of a virtual machine: it lays out what the tool sees, runs it, and carries its streams and sockets to
// the host. It is not trusted by the host: whatever it is made to say, the host's limits hold.
type Agent struct {
	Dial   func(port uint32) (net.Conn, error) // to the host
	Disk   string                              // the drive with the tool's files
	VMStat string                              // the kernel's counters

	born uint64 // what the kernel had killed before the tool started
}

// Run lives as long as the tool. An error is said to the host, too.
func (a *Agent) Run() error {
	conn, err := a.Dial(controlPort)
	if err != nil {
		return fmt.Errorf("reach the host: %w", err)
	}
	defer conn.Close()
	host := newLines(conn, maxOrder)
	if err := a.serve(host); err != nil {
		return errors.Join(err, host.send(report{Fault: fmt.Sprintf("%.500s", err)}))
	}
	// The host ends the machine; where it does not, the machine ends itself.
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.Copy(io.Discard, conn)
	return nil
}

func (a *Agent) serve(host *lines) error {
	var o order
	if err := errors.Join(host.send(report{Hello: protocol}), host.receive(&o)); err != nil {
		return err
	}
	if o.Build == nil {
		return errors.New("the host did not say what to build")
	}
	if err := a.build(o.Build); err != nil {
		return err
	}
	o = order{}
	if err := errors.Join(host.send(report{Built: true}), host.receive(&o)); err != nil {
		return err
	}
	if o.Run == nil {
		return errors.New("the host did not say what to run")
	}
	return a.run(host, o.Run)
}

// run runs the tool to its end, and all that it started.
func (a *Agent) run(host *lines, r *run) error {
	if err := a.share(r); err != nil {
		return err
	}
	if err := giveUp(r.Processes); err != nil {
		return err
	}
	a.born = a.kills()
	tool, drained, err := a.start(r)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { a.watch(host, r.Processes, ended) })
	go func() { // a host that is gone takes the machine along
		if err := host.receive(new(order)); err != nil {
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
	}()
	status := sandbox.Status{Code: 127}
	if tool != 0 {
		status = wait(tool)
	}
	full := tasks() >= r.Processes // what a tool leaves that could start no more
	_ = unix.Kill(-1, unix.SIGKILL)
	drained.Wait()
	close(ended)
	watching.Wait()
	return host.send(report{Exit: &status, Full: full, Kills: a.kills()})
}

// start starts the tool with its streams, which are pipes inside and connections outside. Without a process the tool could not run.
func (a *Agent) start(r *run) (pid int, drained *sync.WaitGroup, err error) {
	cmd := exec.Command(r.Command[0])
	cmd.Args, cmd.Env, cmd.Dir = r.Command, r.Env, sandbox.ScratchAt
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: []uint32{}}}
	drained = &sync.WaitGroup{}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	for i, port := range []uint32{stdinPort, stdoutPort, stderrPort} {
		conn, err := a.Dial(port)
		if err != nil {
			return 0, nil, fmt.Errorf("connect a stream of the tool: %w", err)
		}
		read, write, err := os.Pipe()
		if err != nil {
			return 0, nil, err
		}
		if i == 0 {
			theirs, cmd.Stdin = append(theirs, read), read
			go carry(write, conn)
			continue
		}
		theirs = append(theirs, write)
		drained.Go(func() { carry(conn, read) })
	}
	cmd.Stdout, cmd.Stderr = theirs[1], theirs[2]
	if err := cmd.Start(); err != nil { // said to whom reads the tool, as a shell does
		fmt.Fprintf(theirs[2], "%s: start the tool: %v\n", AgentName, err)
		return 0, drained, nil
	}
	return cmd.Process.Pid, drained, nil
}

// carry copies until from ends, and closes both.
func carry(to io.WriteCloser, from io.ReadCloser) {
	_, _ = io.Copy(to, from)
	_, _ = to.Close(), from.Close()
}

// share makes the folder of sockets: each connection to one goes to the host's own.
func (a *Agent) share(r *run) error {
	for _, f := range r.Files {
		if err := os.WriteFile(filepath.Join(sandbox.SocketsAt, filepath.Base(f.Name)), f.Data, 0o444); err != nil {
			return fmt.Errorf("give the tool a file: %w", err)
		}
	}
	for i, name := range r.Sockets {
		at := filepath.Join(sandbox.SocketsAt, filepath.Base(name))
		ln, err := net.Listen("unix", at)
		if err != nil {
			return fmt.Errorf("give the tool a socket: %w", err)
		}
		if err := os.Chmod(at, 0o666); err != nil {
			return err
		}
		go a.forward(ln, socketPort+uint32(i))
	}
	return unix.Mount("", sandbox.SocketsAt, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

func (a *Agent) forward(ln net.Listener, port uint32) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			out, err := a.Dial(port)
			if err != nil {
				_ = c.Close()
				return
			}
			splice(c.(stream), out.(stream))
		}()
	}
}

// giveUp bounds what starts from here on, on all threads: whichever starts the tool. The kernel refuses only far above the limit of
// processes, so that a tool that reaches it is seen there (watch) and does not end first, of what it could not start.
func giveUp(processes int) error {
	for what, n := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NPROC: uint64(2*processes + 16), unix.RLIMIT_MEMLOCK: 64 << 10} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limit a process: %w", err)
		}
	}
	for c := uintptr(0); c <= 63; c++ {
		if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0); errno != 0 && errno != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, errno)
		}
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("forgo new privileges: %w", errno)
	}
	return nil
}

// wait reaps whatever ends until the tool does: this is the first process, and inherits orphans.
func wait(tool int) sandbox.Status {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return sandbox.Status{Code: 126}
		case pid != tool:
		case status.Signaled():
			return sandbox.Status{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
		case status.Exited():
			return sandbox.Status{Code: status.ExitStatus()}
		}
	}
}

const watchEvery = 100 * time.Millisecond

// watch tells the host what its limits look at, when it changed.
func (a *Agent) watch(host *lines, processes int, ended <-chan struct{}) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last := report{}
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			now := report{Full: tasks() >= processes, Kills: a.kills()}
			if now != last {
				_ = host.send(now) // a host that is gone is noticed elsewhere
				last = now
			}
		}
	}
}

// tasks counts the threads of all processes but this one.
func tasks() int {
	all, _ := filepath.Glob("/proc/[0-9]*")
	n := 0
	for _, p := range all {
		if p != "/proc/1" {
			threads, _ := os.ReadDir(p + "/task")
			n += len(threads)
		}
	}
	return n
}

// kills counts processes that the kernel killed for want of memory.
func (a *Agent) kills() uint64 {
	b, _ := os.ReadFile(a.VMStat)
	_, rest, _ := strings.Cut(string(b), "\noom_kill ")
	word, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseUint(word, 10, 64)
	return n - a.born
}
