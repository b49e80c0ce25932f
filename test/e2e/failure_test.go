// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"remit/internal/api"
)

// ready makes everything that a grant needs and returns the agent with its run token.
func (i *installation) readyAgent() (*agent, string, string) {
	i.t.Helper()
	i.must(i.addScan(scanID, i.image))
	run, err := i.startRun()
	i.must(err)
	a, err := i.become("deploy")
	i.must(err)
	txn, err := a.runToken(run.ID)
	i.must(err)
	return a, txn, string(run.ID)
}

// TestClusterDownOrSlow: the API server hangs from the n-th request on, or is gone. The answer comes in bounded time with the
// reason, and nothing that was made stays.
func TestClusterDownOrSlow(t *testing.T) {
	c := theCluster(t)
	const bound = 12 * time.Second
	for _, tt := range []struct {
		name  string
		hangs func(r *http.Request) bool
		down  bool
	}{
		{"everything hangs", func(*http.Request) bool { return true }, false},
		{"creating hangs", func(r *http.Request) bool {
			return r.Method == http.MethodPost && !strings.Contains(r.URL.Path, "review")
		}, false},
		{"binding hangs", func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/rolebindings") && r.Method == http.MethodPost
		}, false},
		{"down", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, c)
			i := install(t, through(c, p))
			i.serve()
			a, txn, _ := i.readyAgent()
			release := make(chan struct{})
			if tt.down {
				p.CloseClientConnections()
				_ = p.Listener.Close()
				close(release)
			} else {
				p.set(func(_ int64, r *http.Request) <-chan struct{} {
					if tt.hangs(r) {
						return release
					}
					return nil
				}, nil)
			}
			began := time.Now()
			got, err := a.grant(txn, nil)
			took := time.Since(began)
			i.must(err)
			t.Logf("answered after %s: %s", took.Round(time.Millisecond), got)
			if got.Token != "" || got.Error != "access_denied" && got.Error != "temporarily_unavailable" || took > bound {
				t.Errorf("after %s: %s", took, got)
			}
			if got.Error == "access_denied" && !got.has("target_unfit") {
				t.Errorf("the reason is missing: %s", got)
			}
			if !tt.down { // what hung arrives now, all at once; Remit has to find it
				p.set(nil, nil)
				close(release)
			}
			end := time.Now().Add(8 * time.Second)
			for left := c.standing(t, i.id); len(left) > 0; left = c.standing(t, i.id) {
				if time.Now().After(end) {
					t.Fatalf("left at the cluster: %v", left)
				}
				time.Sleep(100 * time.Millisecond)
			}
			i.audit()
		})
	}
}

// TestRegistryDownOrSlow: a tag that cannot be resolved in bounded time starts no run.
func TestRegistryDownOrSlow(t *testing.T) {
	hanging, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	down, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	i := install(t, setting{remit: func(own string) string {
		return own + fmt.Sprintf("registry: {insecure: ['%s', '%s']}\n", hanging.Addr(), down)
	}})
	i.serve()
	for name, host := range map[string]string{"hangs": hanging.Addr().String(), "is down": down} {
		began := time.Now()
		out, err := i.remit("run", "start", "deploy", "-p", "app=foo", "-p", "scan=x", "-p", "image="+host+"/foo:v1")
		if err == nil || time.Since(began) > 20*time.Second || !strings.Contains(out, host) {
			t.Errorf("a registry that %s, after %s: %v", name, time.Since(began), err)
		}
	}
	if out := i.run("run", "list"); strings.Contains(out, "run-") {
		t.Errorf("a run was started: %s", out)
	}
}

// TestDiskFull: what cannot be recorded is not answered; ending authority works all the same (S20).
func TestDiskFull(t *testing.T) {
	c := theCluster(t)
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=24m,mode=0755"); err != nil {
		t.Skipf("needs a small file system of its own, which cannot be mounted here: %v", err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			_ = syscall.Unmount(disk, syscall.MNT_DETACH)
		}
	}
	t.Cleanup(unmount)
	p := newProxy(t, c)
	i := install(t, through(c, p))
	if err := os.CopyFS(filepath.Join(disk, "remit"), os.DirFS(i.path("remit"))); err != nil {
		t.Fatal(err)
	}
	i.must(os.RemoveAll(i.path("remit")))
	i.must(os.Symlink(filepath.Join(disk, "remit"), i.path("remit")))
	for _, private := range []string{"keys"} {
		i.must(filepath.WalkDir(filepath.Join(disk, "remit", private), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			return os.Chmod(path, 0o600)
		}))
	}
	i.serve()
	a, txn, _ := i.readyAgent()
	revoked, err := a.grant(txn, nil)
	i.must(err)
	suspended, err := a.grant(txn, nil)
	i.must(err)
	if revoked.Token == "" || suspended.Token == "" {
		t.Fatalf("not granted: %s %s", revoked, suspended)
	}
	for _, g := range []*answer{revoked, suspended} {
		i.must(i.applyGranted(c, g.Token))
	}
	fill(t, filepath.Join(disk, "ballast"))
	refused := 0
	for range 300 { // the last free pages of the state, and the room that its log has already, take some more; denials would be folded
		got, err := a.grant(txn, nil)
		i.must(err)
		if got.Error == "slow_down" {
			time.Sleep(20 * time.Millisecond)
		} else if got.Status == http.StatusServiceUnavailable {
			refused++
		} else if got.Receipt == nil {
			t.Fatalf("answered without a record: %s", got)
		}
		if refused == 3 {
			break
		}
	}
	if refused < 3 {
		t.Fatal("the disk is full and decisions are still recorded: is it?")
	}
	if got, err := a.grant(txn, nil); err != nil || got.Status != http.StatusServiceUnavailable || got.Token != "" {
		t.Errorf("a grant on a full disk: %v %v", got, err)
	}
	err = i.call("/v1/grants/"+string(revoked.Grant)+"/revoke", api.Reasoned{Reason: "the disk is full"}, nil)
	t.Logf("revoke: %v", err)
	if ok, err := c.usable(revoked.Token, i.id); err != nil || ok {
		t.Errorf("the revoked credential works: %v %v", ok, err)
	}
	err = i.call("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "the disk is full"}, nil)
	t.Logf("suspend: %v", err)
	if ok, err := c.usable(suspended.Token, i.id); err != nil || ok {
		t.Errorf("the suspended agent's credential works: %v %v", ok, err)
	}
	if left := c.standing(t, i.id); len(left) > 0 {
		t.Errorf("left at the cluster: %v", left)
	}
	i.must(os.Remove(filepath.Join(disk, "ballast")))
	i.audit()
	i.process.kill()
	unmount()
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, block := range []int{1 << 20, 4096, 1} {
		for {
			if _, err := f.Write(make([]byte, block)); err != nil {
				break
			}
		}
	}
}

// TestKilledUnderLoad: agents ask from all sides while the server is killed, thrice; every receipt that any of them holds is of
// an entry in the log.
func TestKilledUnderLoad(t *testing.T) {
	i := install(t, setting{})
	i.serve()
	i.must(i.addScan(scanID, i.image))
	for round := range 3 {
		run, err := i.startRun()
		i.must(err)
		a, err := i.become("deploy")
		i.must(err)
		txn, err := a.runToken(run.ID)
		i.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := a.evaluate(txn); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(300+170*round) * time.Millisecond)
		i.process.kill()
		cancel()
		wg.Wait()
		a.http.CloseIdleConnections()
		i.serve()
	}
	if len(i.receipts) < 100 {
		t.Fatalf("only %d receipts: that is no load", len(i.receipts))
	}
	t.Logf("%d receipts", len(i.receipts))
	i.audit()
}
