// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/api"
)

// suspend ROLE: the operator suspends the identity's agent, which is reinstated when the script is over.
func (a *attack) suspend(_ *testscript.TestScript, args []string) error {
	path := "/v1/agents/" + a.profile.Identities[args[0]].Name
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	a.undo = append(a.undo, func() {
		_ = a.admin.Post(context.Background(), path+"/reinstate", api.Reasoned{Reason: "the attack is over"}, nil)
	})
	return a.admin.Post(ctx, path+"/suspend", api.Reasoned{Reason: "an attack of the suite"}, nil)
}

// storm COMMAND [ARG…] -- OPERATOR-ARGS…: the request is made without pause by eight at once while the operator's command runs. After it has returned
// no request that begins may be allowed.
func (a *attack) storm(ts *testscript.TestScript, args []string) error {
	split := slices.Index(args, "--")
	if split < 1 {
		return errors.New("usage: storm COMMAND … -- OPERATOR-COMMAND …")
	}
	ask, ok := a.asking()[args[0]]
	if !ok {
		return fmt.Errorf("%s gets no answer", args[0])
	}
	a.mark()
	st := &stormed{expected: a.script.expected, ask: func() (*answer, error) { return ask(ts, args[1:split]) }}
	for range 8 {
		st.wg.Go(st.run)
	}
	st.wait(func() bool { return st.before.Load() >= 8 })
	err := a.operatorOrSuspend(ts, args[split+1:])
	st.over.Store(true)
	st.wait(func() bool { return st.late.Load() >= 16 })
	st.stop.Store(true)
	st.wg.Wait()
	switch {
	case err != nil || st.fault != nil:
		return errors.Join(err, st.fault)
	case st.before.Load() == 0:
		return errors.New("nothing was allowed even before")
	case st.after.Load() > 0:
		a.verdict, a.got = verdictSucceeded, fmt.Sprintf("%d allowed afterwards", st.after.Load())
		return fmt.Errorf("THE ATTACK SUCCEEDED: %d requests that began after %v were allowed", st.after.Load(), args[split+1:])
	case st.last == nil:
		return errors.New("nothing was refused")
	}
	a.last = st.last
	return a.judge(ts, st.last, a.script.expected, a.script.phrase, a.script.file)
}

// stormed counts what was allowed before and after an operator's command returned.
type stormed struct {
	expected            string
	ask                 func() (*answer, error)
	wg                  sync.WaitGroup
	before, after, late atomic.Int64
	over, stop          atomic.Bool
	mu                  sync.Mutex // guards last and fault
	last                *answer
	fault               error
}

func (s *stormed) run() {
	for !s.stop.Load() {
		late := s.over.Load() // before the request begins
		got, err := s.ask()
		switch {
		case err == nil && got.allowed && late:
			s.after.Add(1)
		case err == nil && got.allowed:
			s.before.Add(1)
		}
		if late {
			s.late.Add(1)
		}
		s.mu.Lock()
		if err != nil {
			s.fault = err
		} else if !got.allowed && (s.last == nil || late || !covers(s.last.String(), s.expected)) {
			s.last = got // one that began late, if there is one: others may have been half-way
		}
		s.mu.Unlock()
	}
}

// wait waits until something is so, for twenty seconds.
func (s *stormed) wait(until func() bool) {
	for end := time.Now().Add(20 * time.Second); !until() && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
}

func (a *attack) operatorOrSuspend(ts *testscript.TestScript, args []string) error {
	if args[0] == "suspend" {
		return a.suspend(ts, args[1:])
	}
	return a.operator(ts, args)
}

// restart [kill]: the server ends, in order or by SIGKILL, and starts again.
func (a *attack) restart(_ *testscript.TestScript, args []string) error {
	sig := syscall.SIGTERM
	if len(args) > 0 {
		sig = syscall.SIGKILL
	}
	l := a.profile.lab
	if l == nil {
		return errors.New("only the laboratory's server can be restarted")
	}
	l.stop(sig)
	for _, h := range a.holders {
		h.client.CloseIdleConnections()
	}
	return errors.Join(l.serve(context.Background(), ""), l.settle(context.Background(), ""))
}

// reload: the operator applies the configuration folder; what it got is the last answer.
func (a *attack) reload(ts *testscript.TestScript, _ []string) error {
	a.mark()
	got, err := a.attempt(ts, []string{a.profile.Remit, "--server", a.profile.Admin, "apply"})
	a.last = got
	return err
}

// configure FILE [MODE] [UID]: puts a file of the script into the configuration folder, until the script is over; then what was there is active again.
func (a *attack) configure(ts *testscript.TestScript, args []string) error {
	to := filepath.Join(a.profile.Dir, "config", filepath.Base(args[0]))
	mode := os.FileMode(0o644)
	if len(args) > 1 {
		if _, err := fmt.Sscanf(args[1], "%o", &mode); err != nil {
			return err
		}
	}
	a.undo = append(a.undo, func() {
		_ = os.Remove(to)
		_ = a.admin.Post(context.Background(), "/v1/apply", nil, nil)
	})
	text := placeholder.ReplaceAllStringFunc(ts.ReadFile(args[0]), func(s string) string { return ts.Getenv(strings.Trim(s, "@")) })
	return errors.Join(os.WriteFile(to, []byte(text), mode), os.Chmod(to, mode))
}

// digest NAME FILE: sets a variable to the digest of a file.
func (a *attack) digest(ts *testscript.TestScript, args []string) error {
	d, err := digestOf(ts.MkAbs(args[1]))
	ts.Setenv(args[0], d)
	return err
}

// flip DIR: flips one bit in every bundle of entries of a log.
func (a *attack) flip(ts *testscript.TestScript, args []string) error {
	n := 0
	err := filepath.WalkDir(ts.MkAbs(filepath.Join(args[0], "tile", "entries")), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		n++
		b[len(b)/2] ^= 1
		return os.WriteFile(p, b, 0o644)
	})
	if n == 0 && err == nil {
		err = errors.New("no entries there")
	}
	return err
}

// raw HOLDER TEXT: bytes as they are written, over TLS; \r and \n stand for themselves. All that comes back within ten seconds is the answer.
func (a *attack) raw(_ *testscript.TestScript, args []string) (*answer, error) {
	h, err := a.holder(args[0])
	if err != nil {
		return nil, err
	}
	conn, err := a.dial(h)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(args[1])); err != nil {
		return nil, err
	}
	text, _ := io.ReadAll(io.LimitReader(conn, 1<<20)) // what came until it was closed
	got := &answer{status: "closed", text: string(text)}
	for line := range strings.Lines(string(text)) {
		var status int
		if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &status); err == nil {
			got.status = fmt.Sprint(status) // the last one counts: what was smuggled
			got.allowed = status < 300
		}
	}
	return got, nil
}

func (a *attack) dial(h *holder) (*tls.Conn, error) {
	pem, err := os.ReadFile(a.profile.Bundle)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if h.cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return h.cert, nil }
	}
	return tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", strings.TrimPrefix(a.profile.Server, "https://"), cfg)
}

// slowly N HOLDER: opens N connections that send one byte of a header each and then nothing, and keeps them until the script is over or the server closes them.
func (a *attack) slowly(_ *testscript.TestScript, args []string) error {
	var n int
	if _, err := fmt.Sscan(args[0], &n); err != nil {
		return err
	}
	h, err := a.holder(args[1])
	if err != nil {
		return err
	}
	for range n {
		conn, err := a.dial(h)
		if err != nil {
			return err
		}
		a.undo = append(a.undo, func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, "P"); err != nil {
			return err
		}
	}
	return nil
}
