// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// house is an installation of a script's own, for what the laboratory's cannot show: signed configuration, a forked ledger. It is gone when
// the script is over.
type house struct {
	dir     string
	process *exec.Cmd
	exited  chan struct{}
}

// found [LINE…]: founds an installation whose directory $STATE becomes; lines are added to its remit.yaml. Nothing runs yet.
func (a *attack) found(ts *testscript.TestScript, args []string) error {
	dir, err := os.MkdirTemp("", "rh-") // short: sockets live in it
	if err != nil {
		return err
	}
	a.undo = append(a.undo, func() { _ = os.RemoveAll(dir) })
	port, err := freePort()
	if err != nil {
		return err
	}
	state := filepath.Join(dir, "state")
	ts.Setenv("STATE", state)
	ts.Setenv("HTTPS", fmt.Sprintf("127.0.0.1:%d", port))
	out, err := exec.Command(a.profile.Remit, "--dir", state, "init", "--trust-domain", "company.com", "--operator", "ci", "--https", fmt.Sprintf("127.0.0.1:%d", port)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	f, err := os.OpenFile(filepath.Join(state, "remit.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(args, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// serve DIR: remit serve on an installation's directory, until halt or the end of the script. Its log is DIR.log.
func (a *attack) serve(_ *testscript.TestScript, args []string) error {
	h := &house{dir: args[0], exited: make(chan struct{})}
	logged, err := os.OpenFile(args[0]+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	h.process = exec.Command(a.profile.Remit, "--dir", args[0], "serve", "--log-level", "debug")
	h.process.Stderr = logged
	out, err := h.process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.process.Start(); err != nil {
		return err
	}
	a.houses = append(a.houses, h)
	a.undo = append(a.undo, h.end)
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		_, _ = io.Copy(io.Discard, out)
		_ = h.process.Wait()
		_ = logged.Close()
		close(h.exited)
	}()
	if !strings.HasPrefix(line, "ready") {
		h.end()
		text, _ := os.ReadFile(args[0] + ".log")
		return fmt.Errorf("remit serve is not ready: %w\n%s", err, text)
	}
	return nil
}

// halt DIR: ends the server on a directory.
func (a *attack) halt(_ *testscript.TestScript, args []string) error {
	for _, h := range a.houses {
		if h.dir == args[0] {
			h.end()
		}
	}
	return nil
}

// end ends the process; ending twice is fine.
func (h *house) end() {
	_ = h.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.exited:
	case <-time.After(20 * time.Second):
		_ = h.process.Process.Kill()
		<-h.exited
	}
}

// signedHouse: founds an installation whose configuration alice and bob must both sign, within a ceiling that dave signs, and runs it with version 1. Keys:
// alice.key, bob.key and dave.key of the script's folder, which also holds mallory's.
func (a *attack) signedHouse(ts *testscript.TestScript, _ []string) error {
	key := func(name string) string { return ts.MkAbs(name + ".key") }
	for _, name := range []string{"alice", "bob", "dave", "mallory"} {
		if out, err := exec.Command(a.profile.Remit, "policy", "key", key(name)).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	one := func(name string) string { return fmt.Sprintf("  - {name: %s, file: %s.pub}", name, key(name)) }
	if err := a.found(ts, []string{"authors:", "  threshold: 2", "  keys:", one("alice"), one("bob"), "ceiling:", "  keys:", one("dave")}); err != nil {
		return err
	}
	state := ts.Getenv("STATE")
	if err := errors.Join(os.WriteFile(filepath.Join(state, "config", "work.yaml"), []byte(signedFile), 0o644), os.Mkdir(filepath.Join(state, "ceiling"), 0o755),
		os.WriteFile(filepath.Join(state, "ceiling", "roof.yaml"), []byte(ceilingFile), 0o644)); err != nil {
		return err
	}
	for dir, by := range map[string][]string{"config": {"alice", "bob"}, "ceiling": {"dave"}} {
		if err := a.bundle(ts, append([]string{filepath.Join(state, dir)}, by...)); err != nil {
			return err
		}
	}
	return a.serve(ts, []string{state})
}

// bundle DIR [SIGNER…]: makes the next bundle of a directory and signs it with the keys of the script's folder.
func (a *attack) bundle(ts *testscript.TestScript, args []string) error {
	steps := [][]string{{"policy", "bundle", args[0], "--for", "company.com"}}
	for _, by := range args[1:] {
		steps = append(steps, []string{"policy", "sign", args[0], "--key", ts.MkAbs(by + ".key")})
	}
	for _, step := range steps {
		if out, err := exec.Command(a.profile.Remit, step...).CombinedOutput(); err != nil {
			return fmt.Errorf("remit %s: %w: %s", strings.Join(step, " "), err, out)
		}
	}
	return nil
}

// double FILE: every signature of an envelope stands in it twice.
func (a *attack) double(ts *testscript.TestScript, args []string) error {
	var e map[string]any
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &e); err != nil {
		return err
	}
	signatures, _ := e["signatures"].([]any)
	e["signatures"] = append(signatures, signatures...)
	b, err := json.Marshal(e)
	return errors.Join(err, os.WriteFile(args[0], b, 0o644))
}

const signedFile = `kind: Agent
name: deploy
attest: [{unix: {uid: 4001}}]
---
kind: Target
name: desk-target
type: external
---
kind: Workflow
name: work
parameters: {app: {type: name}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: do
  may:
  - {name: act, who: agent/deploy, action: kubernetes.apply, target: desk-target, where: {namespace: staging, name: $app}, ttl: 5m}
`

const ceilingFile = `kind: Ceiling
name: roof
run: 2h
may:
- actions: [kubernetes.apply, kubernetes.get]
  targets: [desk-target]
  where: {namespace: [staging, test]}
  ttl: 10m
`
