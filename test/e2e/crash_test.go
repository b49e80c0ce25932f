// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"remit/internal/api"
)

// leaseSeconds is how long the life cycle's grants live: long enough to be caught alive by a crash, short enough to be seen dead.
const leaseSeconds = 7

// lifeCycle plays a client that grants, uses, revokes, grants again and finishes the run, until the server is gone. What it got
// until then is in i.
func lifeCycle(i *installation, c *cluster) error {
	if err := i.addScan(scanID, i.image); err != nil {
		return err
	}
	run, err := i.startRun()
	if err != nil {
		return err
	}
	a, err := i.become("deploy")
	if err != nil {
		return err
	}
	txn, err := a.runToken(run.ID)
	if err != nil {
		return err
	}
	first, err := a.grant(txn, map[string]any{"ttl": leaseSeconds})
	if err != nil {
		return err
	}
	if first.Token == "" {
		return fmt.Errorf("not granted: %s", first)
	}
	if err := i.applyGranted(c, first.Token); err != nil {
		return err
	}
	if no, err := a.grant(txn, map[string]any{"name": "another"}); err != nil || no.Error != "access_denied" {
		return fmt.Errorf("another name: %v %w", no, err)
	}
	if err := i.call("/v1/grants/"+string(first.Grant)+"/revoke", api.Reasoned{Reason: "the test says so"}, nil); err != nil {
		return err
	}
	if ok, err := c.usable(first.Token, i.id); err != nil || ok {
		i.t.Errorf("the revoked credential works: %v %v", ok, err)
	}
	delete(i.tokens, accountOf(first.Token)) // from here on it must be gone at once, whatever happens
	second, err := a.grant(txn, map[string]any{"ttl": leaseSeconds})
	if err != nil {
		return err
	}
	if second.Token == "" {
		return fmt.Errorf("not granted again: %s", second)
	}
	if err := i.call("/v1/runs/"+string(run.ID)+"/finish", nil, nil); err != nil {
		return err
	}
	delete(i.tokens, accountOf(second.Token))
	return nil
}

// nothingLeft asserts, with the administrator's own eyes, that what stands at the cluster is authority that somebody was given
// and that is not over: at first by the credentials that this client holds, plus at most one whose answer the crash ate, and
// after the leases' time nothing at all.
func nothingLeft(i *installation, c *cluster, since time.Time) {
	i.t.Helper()
	var bad string
	for end := time.Now().Add(6 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if bad = notOwed(c.standing(i.t, i.id), i.tokens); bad == "" {
			break
		}
		if time.Now().After(end) {
			i.t.Fatalf("six seconds after the restart: %s", bad)
		}
	}
	over := since.Add((leaseSeconds + 6) * time.Second)
	var left map[string]string
	for ; ; time.Sleep(100 * time.Millisecond) {
		if left = c.standing(i.t, i.id); len(left) == 0 {
			break
		}
		if time.Now().After(over) {
			i.t.Fatalf("after every lease's end these are left: %v", left)
		}
	}
	for name, token := range i.tokens {
		if ok, err := c.usable(token, i.id); err != nil || ok {
			i.t.Errorf("the credential of %s still works: %v %v", name, ok, err)
		}
	}
}

// notOwed says what stands that is nobody's. A lease whose answer was lost is whole: account, role and binding; half of one is
// left over.
func notOwed(standing, held map[string]string) string {
	lost := 0
	for name, what := range standing {
		if held[name] != "" {
			continue
		}
		if lost++; lost > 1 || what != "account role binding" {
			return fmt.Sprintf("%s stands as %q, and %d credentials are held", name, what, len(held))
		}
	}
	return ""
}

// crashes runs play for n = 1, 2 … until one run was not ended by its crash; some at once, since most of it is waiting.
func crashes(t *testing.T, limit int64, play func(t *testing.T, n int64) (crashed bool)) {
	t.Helper()
	const atOnce = 10
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards next, done, most
		next int64
		done bool
		most int64
	)
	for range atOnce {
		wg.Go(func() {
			for {
				mu.Lock()
				next++
				n, stop := next, done || next > limit
				mu.Unlock()
				if stop {
					return
				}
				t.Run(fmt.Sprintf("%d", n), func(t *testing.T) {
					crashed := play(t, n)
					mu.Lock()
					defer mu.Unlock()
					if done = done || !crashed; crashed {
						most = max(most, n)
					}
				})
			}
		})
	}
	wg.Wait()
	if most < 8 || !done {
		t.Errorf("the last crash was at %d: the life cycle is not covered", most)
	}
	t.Logf("%d crashes", most)
}

// TestKilledAtCommit kills the server when its n-th commit is durable and not yet answered, for every n of the life cycle.
func TestKilledAtCommit(t *testing.T) {
	c := theCluster(t)
	crashes(t, 60, func(t *testing.T, n int64) bool {
		p := newProxy(t, c)
		i := install(t, through(c, p))
		i.startCrashing(uint64(n))
		if i.process.isReady() {
			if err := lifeCycle(i, c); err != nil && i.process.ctx.Err() == nil && !dies(i.process) {
				t.Fatal(err)
			}
		}
		crashed := i.process.ctx.Err() != nil || dies(i.process)
		if !crashed {
			i.process.kill()
		}
		afterCrash(i, c)
		return crashed
	})
}

// dies waits a moment for a process that was killed while its client was answered.
func dies(p *process) bool {
	select {
	case <-p.ctx.Done():
		return true
	case <-time.After(2 * time.Second):
		return false
	}
}

func afterCrash(i *installation, c *cluster) {
	i.t.Helper()
	since := time.Now()
	i.serve()
	nothingLeft(i, c, since)
	i.audit()
	if err := i.process.stop(); err != nil {
		i.t.Error(err)
	}
}

// TestKilledAtCall kills the shipped binary when its n-th call to the API server starts, lets that call arrive only after the
// restarted server has cleaned up, and so shows that what was sent before a crash is found, too (S18).
func TestKilledAtCall(t *testing.T) {
	c := theCluster(t)
	crashes(t, 90, func(t *testing.T, n int64) bool {
		p := newProxy(t, c)
		i := install(t, through(c, p))
		deliver, killed := make(chan struct{}), make(chan string, 1)
		i.start()
		dying := i.process
		p.set(func(k int64, r *http.Request) <-chan struct{} {
			if k != n {
				return nil
			}
			dying.kill()
			killed <- r.Method + " " + r.URL.Path
			return deliver
		}, nil)
		if i.process.isReady() {
			if err := lifeCycle(i, c); err != nil && !dies(i.process) {
				t.Fatal(err)
			}
		}
		crashed := dies(i.process)
		p.set(nil, nil)
		since := time.Now()
		if !crashed {
			i.process.kill()
		}
		i.serve()
		if crashed {
			time.Sleep(700 * time.Millisecond) // the first sweep is over
			t.Logf("killed at %s", <-killed)
		}
		close(deliver)
		nothingLeft(i, c, since)
		i.audit()
		if err := i.process.stop(); err != nil {
			t.Error(err)
		}
		return crashed
	})
}

// TestKilledAtAnswer kills the shipped binary when the n-th answer of the API server has reached it.
func TestKilledAtAnswer(t *testing.T) {
	c := theCluster(t)
	crashes(t, 90, func(t *testing.T, n int64) bool {
		p := newProxy(t, c)
		i := install(t, through(c, p))
		i.start()
		dying := i.process
		p.set(nil, func(k int64) {
			if k == n {
				dying.kill()
			}
		})
		if i.process.isReady() {
			if err := lifeCycle(i, c); err != nil && !dies(i.process) {
				t.Fatal(err)
			}
		}
		crashed := dies(i.process)
		p.set(nil, nil)
		if !crashed {
			i.process.kill()
		}
		afterCrash(i, c)
		return crashed
	})
}

// TestNotOwed sees to it that the assertion above can fail.
func TestNotOwed(t *testing.T) {
	whole := "account role binding"
	for _, tt := range []struct {
		standing, held map[string]string
		bad            bool
	}{
		{nil, nil, false},
		{map[string]string{"a": "role"}, map[string]string{"a": "token"}, false},
		{map[string]string{"a": whole}, nil, false},
		{map[string]string{"a": whole, "b": whole}, nil, true},
		{map[string]string{"a": "account role"}, nil, true},
		{map[string]string{"a": "binding"}, map[string]string{"b": "token"}, true},
	} {
		if got := notOwed(tt.standing, tt.held); (got != "") != tt.bad {
			t.Errorf("%v with %v: %q", tt.standing, tt.held, got)
		}
	}
}
