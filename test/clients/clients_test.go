// SPDX-License-Identifier: Apache-2.0

// Package clients_test lets the frameworks that people use talk to the shipped binary: LangChain and CrewAI with a model that follows a
// script. Each is launched as an agent by remit exec, as a person would.
package clients_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const root = "../.."

// desk is a running server, a tool behind it and a run.
type desk struct {
	t          *testing.T
	dir, remit string
	url        string
	run        string
	calls      atomic.Int64 // that reached the tool
}

const files = `kind: Agent
name: support
owner: the support team
launch: {by: [operator/ci], commands: [COMMANDS], inherit: true}
---
kind: Tool
name: crm
server: {url: "URL", ca: CA}
---
kind: Workflow
name: support
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: work
  may:
  - {name: close, who: agent/support, action: mcp.call, target: crm/close, sandbox: remote, where: {customer: $customer},
     evidence: [{approval: {when: {customer: {above: 0}}, group: support, people: 1, by: not-starter, within: 15m}}]}
  - {name: look, who: agent/support, action: mcp.call, target: crm/look, sandbox: remote, where: {customer: $customer}}
  - {name: see, who: agent/support, action: mcp.list, target: crm/drop, sandbox: remote}
`

type lookIn struct {
	Customer int `json:"customer" jsonschema:"the customer's number"`
}

// open starts everything. programs are the executables that may be the agent.
func open(t *testing.T, programs ...string) *desk {
	t.Helper()
	d := &desk{t: t, dir: t.TempDir()}
	d.remit = filepath.Join(d.dir, "bin", "remit")
	b, err := os.ReadFile(binary(t))
	if err := errors.Join(err, os.Mkdir(filepath.Dir(d.remit), 0o755), os.WriteFile(d.remit, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	d.url = "https://localhost" + address[strings.LastIndex(address, ":"):]
	d.do("init", "--trust-domain", "company.com", "--operator", "ci", "--https", address)
	d.edit("remit/remit.yaml", "allow_own_uid: false", "allow_own_uid: true")
	d.write("remit/config/support.yaml", strings.NewReplacer("COMMANDS", digests(t, append(programs, d.remit)), "URL", d.tool(), "CA", filepath.Join(d.dir, "crm.pem")).Replace(files))
	d.serve()
	d.do("apply")
	d.run = regexp.MustCompile(`run-[a-z2-7]{26}`).FindString(d.do("run", "start", "support", "-p", "customer=7"))
	return d
}

// built is the remit that all tests share; REMIT_TEST_BINARY names another one.
var built = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("REMIT_TEST_BINARY"); path != "" {
		return path, nil
	}
	var err error
	if builtIn, err = os.MkdirTemp("", "remit-clients-"); err != nil {
		return "", err
	}
	path := filepath.Join(builtIn, "remit")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/remit")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

// builtIn is the folder of built, once it is made.
var builtIn string

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		if err := os.RemoveAll(builtIn); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// tool starts a real MCP server with two tools.
func (d *desk) tool() string {
	s := sdk.NewServer(&sdk.Implementation{Name: "crm", Version: "1"}, nil)
	for _, name := range []string{"look", "drop", "close"} {
		sdk.AddTool(s, &sdk.Tool{Name: name, Description: "customers: " + name}, func(_ context.Context, _ *sdk.CallToolRequest, in lookIn) (*sdk.CallToolResult, any, error) {
			d.calls.Add(1)
			return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: fmt.Sprintf("%s %d: Ann", name, in.Customer)}}}, nil, nil
		})
	}
	srv := httptest.NewTLSServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, nil))
	d.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	d.write("crm.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	return srv.URL
}

func digests(t *testing.T, programs []string) string {
	var out []string
	for _, p := range programs {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		out = append(out, "'sha256:"+hex.EncodeToString(sum[:])+"'")
	}
	return strings.Join(out, ", ")
}

func (d *desk) serve() {
	d.t.Helper()
	cmd := d.command("serve")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if d.t.Failed() {
			d.t.Logf("%s", log.Bytes())
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if d.command("doctor").Run() == nil {
			return
		}
		if time.Now().After(end) {
			d.t.Fatal("the server does not come up")
		}
	}
}

func (d *desk) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.t.Context(), d.remit, args...)
	cmd.Dir = d.dir
	sdk, err := filepath.Abs(filepath.Join(root, "sdk", "python", "src"))
	if err != nil {
		d.t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(d.remit)+string(os.PathListSeparator)+os.Getenv("PATH"), "PYTHONPATH="+sdk)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// do runs a command of remit that must succeed.
func (d *desk) do(args ...string) string {
	d.t.Helper()
	out, err := d.command(args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("remit %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// agent launches a program as the agent and returns what it printed.
func (d *desk) agent(program string, args ...string) (string, error) {
	d.t.Helper()
	cmd := d.command(append([]string{"exec", "--run", d.run, "--as", "agent/support", "--for", "look", "--", program}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	late := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s\n%s", err, out, errs.Bytes())
	}
	return string(out), err
}

func (d *desk) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) edit(name, old, text string) {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil || !bytes.Contains(b, []byte(old)) {
		d.t.Fatalf("%v: %s lacks %q", err, name, old)
	}
	d.write(name, strings.Replace(string(b), old, text, 1))
}

// told is what an agent of testdata prints: one message of its conversation a line.
type told struct {
	Tool   string   `json:"tool"`
	Status string   `json:"status"`
	Text   string   `json:"text"`
	Tools  []string `json:"tools"`
	Remit  struct {
		Run, Stage, Decision string
		Reasons              []string
		Held                 bool
		Hold, Until          string
		RetryAfter           int `json:"retry_after_s"`
	} `json:"remit"`
}

func conversation(t *testing.T, out string) (all []told) {
	t.Helper()
	for line := range strings.Lines(out) {
		var m told
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			all = append(all, m)
		}
	}
	return all
}

// python returns the interpreter of a virtual environment that make test-clients made.
func python(t *testing.T, framework string) (interpreter, measured string) {
	t.Helper()
	at, err := filepath.Abs(filepath.Join(root, "bin", "venv", framework, "bin", "python"))
	if err != nil {
		t.Fatal(err)
	}
	measured, err = filepath.EvalSymlinks(at)
	if err != nil || testing.Short() {
		t.Skipf("%s is not installed (make test-clients), or SHORT=1", framework)
	}
	return at, measured
}

// TestFrameworks: a model that follows a script calls an allowed tool, the same tool for another customer, and a tool that is only
// shown, and one that a person has to agree to. The denials come back to the model as messages that say what was missing, with the run and
// stage; where the framework keeps what a result says beside its text, so do the messages of calls that were made.
func TestFrameworks(t *testing.T) {
	for framework, names := range map[string]string{"langchain": "crm__close crm__drop crm__look", "crewai": "crm_close crm_drop crm_look"} {
		t.Run(framework, func(t *testing.T) {
			at, measured := python(t, framework)
			d := open(t, measured)
			script, err := filepath.Abs(filepath.Join("testdata", framework+"_agent.py"))
			if err != nil {
				t.Fatal(err)
			}
			for _, source := range []string{"workload", "command"} {
				t.Run(source, func(t *testing.T) { d.converse(t, at, script, source, names) })
			}
		})
	}
}

func (d *desk) converse(t *testing.T, python, script, source, names string) {
	before := d.calls.Load()
	out, err := d.agent(python, script, source)
	if err != nil {
		t.Fatal(err)
	}
	all := conversation(t, out)
	if len(all) != 5 || strings.Join(all[0].Tools, " ") != names {
		t.Fatalf("%s", out)
	}
	if all[1].Status == "error" || !strings.Contains(all[1].Text, "look 7: Ann") {
		t.Errorf("allowed: %+v", all[1])
	}
	if got := all[1].Remit; strings.HasPrefix(names, "crm__") && (got.Run != d.run || got.Stage != "work" || !strings.HasPrefix(got.Decision, "dec-")) {
		t.Errorf("an allowed call's message says %+v", got)
	}
	if m := all[4]; !m.Remit.Held || !strings.HasPrefix(m.Remit.Hold, "hold-") || m.Remit.RetryAfter <= 0 || !strings.Contains(m.Text, m.Remit.Hold) {
		t.Errorf("held: %+v", m)
	} else if until, err := time.Parse(time.RFC3339, m.Remit.Until); err != nil || until.Before(time.Now()) {
		t.Errorf("held until %q: %v", m.Remit.Until, err)
	}
	for i, reason := range map[int]string{2: "argument_mismatch", 3: "not_permitted"} {
		m := all[i]
		if m.Status != "error" || !strings.Contains(m.Text, "Denied: the call was not made.") || !strings.Contains(m.Text, reason) ||
			!strings.Contains(m.Text, "To go on: ") || m.Remit.Run != d.run || m.Remit.Stage != "work" || !strings.HasPrefix(m.Remit.Decision, "dec-") ||
			!strings.Contains(m.Text, m.Remit.Decision) {
			t.Errorf("%s: %+v", reason, m)
		}
		if why := d.do("why", m.Remit.Decision); !strings.Contains(why, reason) {
			t.Errorf("the ledger says %s", why)
		}
	}
	if n := d.calls.Load() - before; n != 1 {
		t.Errorf("%d calls reached the tool", n)
	}
}
