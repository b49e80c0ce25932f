// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/credential/postgres"
)

// TestMintsTogether: of mints that go together, each has its own outcome: what one asks for, and that its caller gave up, is no other's.
func TestMintsTogether(t *testing.T) {
	d := newDatabase(t, nil)
	exec(t, d.admin, "CREATE OR REPLACE VIEW remit.amounts WITH (security_barrier) AS SELECT amount FROM public.transactions") // no lease is made of it
	exec(t, d.admin, "BEGIN; LOCK TABLE remit.declared IN ACCESS EXCLUSIVE MODE")                                              // those that come meanwhile gather
	kinds := map[string]func(*remit.Lease){
		"good": func(*remit.Lease) {}, "a view that was changed": func(l *remit.Lease) { l.Action, l.Scope = lease("amounts").Action, lease("amounts").Scope },
		"over when it is sent": func(*remit.Lease) {}, "gave up": func(*remit.Lease) {},
	}
	type minted struct {
		kind  string
		lease remit.Lease
		cred  remit.Credential
		err   error
	}
	var mu sync.Mutex
	var all []minted
	var wg sync.WaitGroup
	start := func(kind string) {
		wg.Go(func() {
			m := minted{kind: kind, lease: lease("transactions")}
			kinds[kind](&m.lease)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			switch kind {
			case "gave up":
				time.AfterFunc(200*time.Millisecond, cancel)
			case "over when it is sent":
				m.lease.MintBefore = time.Now().Add(200 * time.Millisecond)
			}
			m.cred, m.err = d.driver.Mint(ctx, m.lease)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, m)
		})
	}
	for range 2 { // two calls, which wait for the lock
		start("good")
		time.Sleep(50 * time.Millisecond)
	}
	for range 6 {
		for kind := range kinds {
			start(kind)
		}
	}
	time.Sleep(500 * time.Millisecond)
	exec(t, d.admin, "COMMIT")
	wg.Wait()
	for _, m := range all {
		left, err := d.standing(t.Context(), m.lease)
		switch {
		case err != nil:
			t.Fatal(err)
		case m.kind != "good" && (m.err == nil || len(left) > 0):
			t.Errorf("%s: %v stand, error %v", m.kind, left, errorText(m.err))
		case m.kind == "a view that was changed" && !strings.Contains(errorText(m.err), "not as it was set up"):
			t.Errorf("%s: %v", m.kind, errorText(m.err))
		case m.kind == "gave up" && !errors.Is(m.err, context.Canceled):
			t.Errorf("%s: %v", m.kind, errorText(m.err))
		case m.kind == "good" && (m.err != nil || len(left) != 2):
			t.Errorf("%s: %v stand, error %v", m.kind, left, errorText(m.err))
		case m.kind == "good":
			if n, err := count(t.Context(), m.cred, "SELECT count(*) FROM remit.transactions"); n != 100 {
				t.Errorf("a lease sees %d rows: %v", n, err)
			}
		}
	}
	if n := len(all); n != 26 {
		t.Errorf("%d mints came back", n)
	}
}

// TestMintsPassOn: whoever is to send others, and gives up, sends them all the same; and afterwards one goes at once.
func TestMintsPassOn(t *testing.T) {
	d := newDatabase(t, func(c *postgres.Config) { c.Timeout = 10 * time.Second })
	for range 300 {
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%6)*time.Millisecond)
				if i%3 == 0 {
					ctx, cancel = context.WithCancel(t.Context())
				}
				defer cancel()
				l := lease("transactions")
				c, err := d.driver.Mint(ctx, l)
				if (err != nil || c.Fields["user"] == "") && i%3 == 0 {
					t.Error("the patient one was forgotten:", errorText(err))
				}
			})
		}
		wg.Wait()
	}
	d.mint(lease("transactions"))
}
