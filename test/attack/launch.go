// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// launch NAME RUN AGENT PERMISSION: the operator launches an agent that runs until the script is over. NAME_TOKEN, NAME_SOCKET and NAME_ID become its run
// token, the path of its socket and its launch.
func (a *attack) launch(ts *testscript.TestScript, args []string) error {
	cmd := exec.Command(a.profile.Remit, "--server", a.profile.Admin, "exec", "--run", args[1], "--as", args[2], "--for", args[3], "--", toolPath, "tool", "token", "stay")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	a.undo = append(a.undo, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		ts.Setenv(args[0]+"_"+strings.ToUpper(name), text)
		if name == "socket" {
			ts.Setenv(args[0]+"_ID", strings.TrimSuffix(filepath.Base(text), ".sock"))
			return nil
		}
	}
	return errors.New("the launched agent did not start")
}

// flood TIMES COMMAND [ARG…]: the same request many times, eight at once; the last answer is one that is refused as the header says, if there is one.
func (a *attack) flood(ts *testscript.TestScript, args []string) error {
	var times int
	if _, err := fmt.Sscan(args[0], &times); err != nil {
		return err
	}
	ask, ok := a.asking()[args[1]]
	if !ok {
		return fmt.Errorf("%s gets no answer", args[1])
	}
	a.mark()
	var mu sync.Mutex // guards fault and a.last
	var fault error
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range times / 8 {
				got, err := ask(ts, args[2:])
				mu.Lock()
				if err != nil {
					fault = err
				} else if a.last == nil || !covers(a.last.String(), a.script.expected) {
					a.last = got
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return fault
}

// readable USER FOLDER: whether a user of the host can read one of the folder's files, as an attempt.
func (a *attack) readable(ts *testscript.TestScript, args []string) (*answer, error) {
	var files []string
	err := filepath.WalkDir(args[1], func(path string, d fs.DirEntry, err error) error {
		public := strings.HasSuffix(path, ".pub") || strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, "bundle.pem")
		if err == nil && d.Type().IsRegular() && !public {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no files in %s: %w", args[1], err)
	}
	return a.tool(ts, append([]string{args[0], "read"}, files...))
}

// spoil FILE: flips one bit of the signature of a statement.
func (a *attack) spoil(ts *testscript.TestScript, args []string) error {
	var e struct {
		PayloadType string `json:"payloadType"`
		Payload     string `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   []byte `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &e); err != nil {
		return err
	}
	sig := e.Signatures[0].Sig
	sig[len(sig)-4] ^= 1
	b, err := json.Marshal(e)
	return errors.Join(err, os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// receipt FILE [forge]: writes the receipt of the last answer; forge changes what it is about.
func (a *attack) receipt(ts *testscript.TestScript, args []string) error {
	var v struct {
		Context struct {
			Receipt map[string]any `json:"receipt"`
		} `json:"context"`
	}
	dec := json.NewDecoder(strings.NewReader(a.received))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil || v.Context.Receipt == nil {
		return fmt.Errorf("the last answer has no receipt: %s", a.received)
	}
	if len(args) > 1 {
		leaf, err := base64.StdEncoding.DecodeString(fmt.Sprint(v.Context.Receipt["leaf"]))
		if err != nil {
			return err
		}
		leaf[0] ^= 1
		v.Context.Receipt["leaf"] = leaf
	}
	b, err := json.Marshal(v.Context.Receipt)
	return errors.Join(err, os.WriteFile(ts.MkAbs(args[0]), append(b, '\n'), 0o644))
}

// savetext FILE: writes the last answer as it came.
func (a *attack) savetext(ts *testscript.TestScript, args []string) error {
	return os.WriteFile(ts.MkAbs(args[0]), []byte(a.last.text), 0o644)
}

// terminal COMMAND [ARG…]: a program on a terminal of its own, in which an operator would sit. What was typed into it, by whomever, is not success or failure:
// the program's exit is.
func (a *attack) terminal(_ *testscript.TestScript, args []string) (*answer, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer master.Close()
	defer slave.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = slave.Close()
	read := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error when the last user of the terminal is gone
		read <- string(b)
	}()
	err = cmd.Wait()
	return &answer{status: "exit", reasons: []string{fmt.Sprint(cmd.ProcessState.ExitCode())}, allowed: err == nil, text: <-read}, nil
}

func openTerminal() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// together COMMAND… -- COMMAND…: two requests, eight times each, at once; what each got, the best of the eight, are the lines of the last answer.
func (a *attack) together(ts *testscript.TestScript, args []string) error {
	split := slices.Index(args, "--")
	if split < 1 {
		return errors.New("usage: together COMMAND … -- COMMAND …")
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards best and fault
	best, fault := [2]string{}, error(nil)
	for i, one := range [][]string{args[:split], args[split+1:]} {
		ask, ok := a.asking()[one[0]]
		if !ok {
			return fmt.Errorf("%s gets no answer", one[0])
		}
		for range 8 {
			wg.Go(func() {
				got, err := ask(ts, one[1:])
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					fault = err
				} else if best[i] == "" || got.allowed {
					best[i] = strings.ReplaceAll(got.text, "\n", " ")
				}
			})
		}
	}
	wg.Wait()
	a.last = &answer{status: "two", text: best[0] + "\n" + best[1] + "\n"}
	return fault
}

// downgrade ROLE: from here on the holder speaks TLS 1.1 at most.
func (a *attack) downgrade(_ *testscript.TestScript, args []string) error {
	h, err := a.holder(args[0])
	if err != nil {
		return err
	}
	t, ok := h.client.Transport.(*http.Transport)
	if !ok {
		return errors.New("the holder has no transport of ours")
	}
	t = t.Clone()
	t.TLSClientConfig.MinVersion, t.TLSClientConfig.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	h.client.Transport = t
	return nil
}
