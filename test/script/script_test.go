// SPDX-License-Identifier: Apache-2.0

// Package script_test runs what README and docs promise as a person types it: each testdata/*.txtar is a script against the
// real main, in a directory of its own.
package script_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit"
	"remit/internal/cli"
	"remit/internal/evidence/evidencetest"
	"remit/internal/gateway/login/logintest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"remit":    func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"scanner":  func() { os.Exit(scanner(os.Args[1:])) },
		"xdg-open": func() { os.Exit(browser(os.Args[1])) },
	})
}

func TestScripts(t *testing.T) { run(t, "testdata", func(*testscript.Env) error { return nil }) }

// TestLoginScripts has an OpenID provider, and a browser in which $ACCOUNT is logged in.
func TestLoginScripts(t *testing.T) {
	p := logintest.Start(t, map[string]logintest.Account{
		"alice":   {Subject: "1", Name: "alice", Groups: []string{"remit-admins"}},
		"carol":   {Subject: "2", Name: "carol", Groups: []string{"remit-audit"}},
		"mallory": {Subject: "3", Name: "mallory"},
		"bob":     {Subject: "4", Name: "bob", Groups: []string{"finance"}},
	})
	run(t, filepath.Join("testdata", "login"), func(e *testscript.Env) error {
		e.Setenv("ISSUER", p.Issuer)
		e.Setenv("REMIT_SESSION", filepath.Join(e.WorkDir, "home", "session.json"))
		e.Setenv("PROVIDER_CA", filepath.Join(e.WorkDir, "provider.pem"))
		return os.WriteFile(filepath.Join(e.WorkDir, "provider.pem"), p.CA, 0o600)
	})
}

// browser visits an address as $ACCOUNT. Somebody whom the provider refuses ends at the loopback, too.
func browser(address string) int {
	ca, err := os.ReadFile(os.Getenv("PROVIDER_CA"))
	if err == nil {
		_, err = (&logintest.Provider{CA: ca}).Browse(os.Getenv("ACCOUNT"), address, true)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		return 1
	}
	return 0
}

func run(t *testing.T, dir string, setup func(*testscript.Env) error) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			examples, err := filepath.Abs("../../examples")
			if err != nil {
				return err
			}
			e.Setenv("EXAMPLES", examples)
			if err := setup(e); err != nil {
				return err
			}
			port, err := freePort()
			e.Setenv("REMIT_GUARD_OFF", os.Getenv("REMIT_GUARD_OFF")) // which guard test/guards runs the command without
			e.Setenv("HTTPS", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			e.Setenv("UID", strconv.Itoa(os.Getuid()))
			return errors.Join(err, os.Chmod(e.WorkDir, 0o755))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "grab": grab, "fill": fill, "json": isJSON, "eventually": eventually, "digest": digest, "flip": flip, "terminate": terminate,
		},
	})
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// exits CODE COMMAND [ARG…]: runs it and compares the exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG…]")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exited, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exited.ExitCode()
	}
	ts.Logf("[stdout]\n%s[stderr]\n%s", ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}

// grab NAME RE: sets a variable to the first group that the last command's output matches.
func grab(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: grab NAME RE")
	}
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout") + ts.ReadFile("stderr"))
	if len(m) != 2 {
		ts.Fatalf("the output does not match %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// fill FROM TO: copies a file and replaces @NAME@ by the variable.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fill FROM TO")
	}
	text := regexp.MustCompile(`@([A-Z]+)@`).ReplaceAllStringFunc(ts.ReadFile(args[0]), func(s string) string {
		return ts.Getenv(strings.Trim(s, "@"))
	})
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644))
}

// json [FIELD…]: the last output is one JSON value, and has those fields.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); (err != nil) != neg {
		ts.Fatalf("JSON: %v", err)
	}
	for _, name := range args {
		if _, ok := v.(map[string]any)[name]; !ok {
			ts.Fatalf("there is no %q in it", name)
		}
	}
}

// eventually COMMAND [ARG…]: runs it until it succeeds, for ten seconds.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually COMMAND [ARG…]")
	}
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = ts.Exec(args[0], args[1:]...); err == nil {
			return
		}
	}
	ts.Fatalf("not in ten seconds: %v\n%s", err, ts.ReadFile("stderr"))
}

// terminate: sends SIGTERM to every background command, as a service manager does.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: terminate")
	}
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	}
}

// digest NAME PROGRAM: sets a variable to the digest of a program in PATH.
func digest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: digest NAME PROGRAM")
	}
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if b, err := os.ReadFile(filepath.Join(dir, args[1])); err == nil {
			ts.Setenv(args[0], fmt.Sprintf("sha256:%x", sha256.Sum256(b)))
			return
		}
	}
	ts.Fatalf("%s is not in PATH", args[1])
}

// flip DIR: flips one bit in every bundle of entries of a log.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip DIR")
	}
	n := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(filepath.Join(args[0], "tile", "entries")), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		n++
		b[20] ^= 1
		return os.WriteFile(p, b, 0o644)
	}))
	if n == 0 {
		ts.Fatalf("%s holds no entries", args[0])
	}
}

// scanner plays a scanner in CI: it signs a scan with the key in a file, which it makes when it is not there.
func scanner(args []string) int {
	f := flag.NewFlagSet("scanner", flag.ContinueOnError)
	key, id, digest := f.String("key", "scanner.key", "private key"), f.String("id", "scan-789", ""), f.String("digest", "", "")
	severity, name, spoil := f.String("severity", "low", ""), f.String("name", "ci-scanner", ""), f.Bool("spoil", false, "flip a bit of the signature")
	if err := f.Parse(args); err != nil {
		return 2
	}
	s, err := loadSigner(*name, *key)
	if err == nil && *digest == "" {
		fmt.Print(s.PublicPEM())
		return 0
	}
	var envelope []byte
	if err == nil {
		envelope, err = s.Sign(evidencetest.Scan{ID: *id, Image: "foo", Subjects: []remit.Digest{remit.Digest(*digest)}, Finished: time.Now(),
			Findings: []evidencetest.Finding{{ID: "CVE-2026-0001", Severity: *severity}}}.Statement())
	}
	if err == nil && *spoil {
		envelope, err = spoiled(envelope)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scanner:", err)
		return 1
	}
	fmt.Println(string(envelope))
	return 0
}

func loadSigner(name, file string) (*evidencetest.Signer, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, err
		}
		b = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no key in " + file)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return evidencetest.NewSignerFromKey(name, key)
}

// spoiled flips a bit in the middle of the signature, which stays well-formed base64.
func spoiled(envelope []byte) ([]byte, error) {
	var e struct {
		PayloadType string `json:"payloadType"`
		Payload     string `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   []byte `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(envelope, &e); err != nil {
		return nil, err
	}
	sig := e.Signatures[0].Sig
	sig[len(sig)-4] ^= 1
	return json.Marshal(e)
}
