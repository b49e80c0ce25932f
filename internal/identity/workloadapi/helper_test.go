// SPDX-License-Identifier: Apache-2.0

package workloadapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"

	"remit"
	"remit/internal/identity"
	"remit/internal/identity/issuer"
	"remit/internal/identity/workloadapi"
)

var domain = spiffeid.RequireTrustDomainFromString("company.com")

const own = "https://remit.company.com"

func TestMain(m *testing.M) {
	if mode := os.Getenv("REMIT_TEST_HELPER"); mode != "" {
		helper(mode)
		return
	}
	os.Exit(m.Run())
}

// answer is what a helper process prints for each thing that it did.
type answer struct {
	IDs    []string `json:"ids,omitempty"`
	Serial string   `json:"serial,omitempty"`
	Code   string   `json:"code,omitempty"`
}

// helper is another process: it waits for a line on its standard input, then fetches.
func helper(mode string) {
	time.AfterFunc(time.Minute, func() { os.Exit(3) }) // whatever becomes of the test, this process ends
	if mode != "now" {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	}
	switch mode {
	case "now":
		print1(fetch(context.Background()))
	case "become": // what descriptor 3 is
		_ = os.Setenv("REMIT_TEST_HELPER", "now")
		print1(answer{Code: syscall.Exec("/proc/self/fd/3", []string{"helper"}, os.Environ()).Error()})
	case "fetch":
		print1(fetch(context.Background()))
	case "child", "orphan": // a grandchild fetches
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), "REMIT_TEST_HELPER=fetch")
		if mode == "orphan" {
			c.Env = append(os.Environ(), "REMIT_TEST_HELPER=late")
			in, _ := c.StdinPipe()
			c.Stdout = os.Stdout
			_ = c.Start()
			_, _ = io.WriteString(in, "\n")
			os.Exit(0) // the child is nobody's now
		}
		c.Stdin, c.Stdout, c.Stderr = strings.NewReader("\n"), os.Stdout, os.Stderr
		_ = c.Run()
	case "late":
		for os.Getppid() != 1 {
			time.Sleep(5 * time.Millisecond)
		}
		print1(fetch(context.Background()))
	case "jwt":
		c, err := client.New(context.Background())
		if err == nil {
			var s *jwtsvid.SVID
			if s, err = c.FetchJWTSVID(context.Background(), jwtsvid.Params{Audience: own}); err == nil {
				print1(answer{IDs: []string{s.ID.String()}, Serial: s.Claims["jti"].(string)})
				return
			}
		}
		print1(answer{Code: status.Code(err).String()})
	case "watch":
		watch()
	}
}

func print1(a answer) {
	b, _ := json.Marshal(a)
	fmt.Println(string(b))
}

func fetch(ctx context.Context) answer {
	c, err := client.New(ctx)
	if err != nil {
		return answer{Code: err.Error()}
	}
	defer c.Close()
	svids, err := c.FetchX509SVIDs(ctx)
	if err != nil {
		return answer{Code: status.Code(err).String()}
	}
	a := answer{}
	for _, s := range svids {
		a.IDs, a.Serial = append(a.IDs, s.ID.String()), identity.Serial(s.Certificates[0])
	}
	return a
}

type printer struct{}

func (printer) OnX509ContextUpdate(c *client.X509Context) {
	print1(answer{IDs: []string{c.DefaultSVID().ID.String()}, Serial: identity.Serial(c.DefaultSVID().Certificates[0])})
}
func (printer) OnX509ContextWatchError(err error) { print1(answer{Code: status.Code(err).String()}) }

func watch() {
	c, err := client.New(context.Background())
	if err != nil {
		print1(answer{Code: err.Error()})
		return
	}
	_ = c.WatchX509Context(context.Background(), printer{})
}

// fixture is a served Workload API.
type fixture struct {
	t         testing.TB
	dir       string // every user may enter
	socket    string
	authority *issuer.Authority
	registry  *identity.Registry
	server    *workloadapi.Server

	mu        sync.Mutex // guards the rest
	suspended map[remit.Name]bool
	issued    map[string]remit.Issued
	refuse    error // OnIssue's answer
}

// Issued implements identity.Records.
func (f *fixture) Issued(credential string) (remit.Issued, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.issued[credential]
	return i, ok
}

func newFixture(t testing.TB, change func(*issuer.Config, *workloadapi.Config), agents ...remit.Agent) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, dir: dir, socket: filepath.Join(dir, "api.sock"), registry: identity.NewRegistry(),
		suspended: map[remit.Name]bool{}, issued: map[string]remit.Issued{}}
	ic := issuer.Config{TrustDomain: domain, Dir: filepath.Join(dir, "keys")}
	wc := workloadapi.Config{Registry: f.registry, OwnAudience: own, Jitter: time.Millisecond,
		Allowed: func(n remit.Name) bool { f.mu.Lock(); defer f.mu.Unlock(); return !f.suspended[n] },
		OnIssue: func(_ context.Context, i remit.Issued) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.issued[i.Credential] = i
			return f.refuse
		}}
	if change != nil {
		change(&ic, &wc)
	}
	if f.authority, err = issuer.New(ic); err != nil {
		t.Fatal(err)
	}
	wc.Authority = f.authority
	f.configure(agents...)
	if f.server, err = workloadapi.New(wc); err != nil {
		t.Fatal(err)
	}
	if err := f.server.Listen(f.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.server.Close)
	return f
}

func (f *fixture) configure(agents ...remit.Agent) {
	f.t.Helper()
	if err := f.registry.Replace(agents, nil); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) suspend(n remit.Name) {
	f.mu.Lock()
	f.suspended[n] = true
	f.mu.Unlock()
	f.registry.Notify()
}

func (f *fixture) refuseToRecord(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = err
}

func (f *fixture) addr() client.ClientOption { return client.WithAddr("unix://" + f.socket) }

func (f *fixture) client() *client.Client {
	f.t.Helper()
	c, err := client.New(context.Background(), f.addr())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// agent is attested by any of the selectors.
func agent(name string, selectors ...string) remit.Agent {
	n, err := remit.ParseName("agent/" + name)
	if err != nil {
		panic(err)
	}
	a := remit.Agent{Name: n, ID: spiffeid.RequireFromPath(domain, "/agent/"+name), TTL: 10 * time.Minute, Audiences: []string{"https://vault"},
		Launch: &remit.Launch{Commands: []remit.Digest{command()}}}
	for _, s := range selectors {
		a.Attest = append(a.Attest, remit.Attestation{Selectors: strings.Split(s, " ")})
	}
	return a
}

// command is the digest of the helper: this test's own program.
var command = sync.OnceValue(func() remit.Digest {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	return remit.DigestOf(b)
})

// self attests the test process itself.
func self() string { return fmt.Sprintf("unix:uid:%d", os.Geteuid()) }

// process is a helper process that waits for its start.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start runs a copy of the test binary as another user.
func (f *fixture) start(uid int, mode, socket string, files ...*os.File) *process {
	f.t.Helper()
	needRoot(f.t)
	bin := filepath.Join(f.dir, "helper")
	if _, err := os.Stat(bin); err != nil {
		b, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(bin, b, 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	p := &process{t: f.t, cmd: exec.Command(bin)}
	p.cmd.Env = []string{"REMIT_TEST_HELPER=" + mode, "SPIFFE_ENDPOINT_SOCKET=unix://" + socket}
	p.cmd.Dir, p.cmd.ExtraFiles = "/", files
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), Groups: []uint32{}}}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		f.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("processes of other users can be started by root only")
	}
}

func (p *process) release() { _, _ = io.WriteString(p.in, "\n") }

// next returns the next answer.
func (p *process) next() answer {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatalf("the process said nothing: %v", p.out.Err())
	}
	var a answer
	if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
		p.t.Fatalf("%q: %v", p.out.Text(), err)
	}
	return a
}

// ask runs a helper and returns its answer.
func (f *fixture) ask(uid int, mode, socket string) answer {
	f.t.Helper()
	p := f.start(uid, mode, socket)
	p.release()
	return p.next()
}
