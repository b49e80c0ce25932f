// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/credential/postgres"
)

func (d *database) mint(l remit.Lease) remit.Credential {
	d.t.Helper()
	c, err := d.driver.Mint(d.t.Context(), l)
	if err != nil {
		d.t.Fatal(errorText(err))
	}
	return c
}

func (d *database) session(c remit.Credential) *pgx.Conn {
	d.t.Helper()
	conn, err := login(d.t.Context(), c, "")
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestMintIsNeverSentTooLate(t *testing.T) {
	d := newDatabase(t, nil)
	l := lease("transactions")
	l.MintBefore = time.Now().Add(-time.Millisecond)
	if _, err := d.driver.Mint(t.Context(), l); err == nil {
		t.Error("minted after its time")
	}
	if left, err := d.standing(t.Context(), l); err != nil || len(left) > 0 {
		t.Errorf("sent after its time: %v, %v", left, err)
	}
	d.cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		time.Sleep(500 * time.Millisecond)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	l.MintBefore = time.Now().Add(200 * time.Millisecond)
	if _, err := d.remake().Mint(t.Context(), l); err == nil {
		t.Error("minted after its time, over a connection that took longer")
	}
	time.Sleep(time.Second)
	if left, err := d.standing(t.Context(), l); err != nil || len(left) > 0 {
		t.Errorf("sent after its time, over a connection that took longer: %v, %v", left, err)
	}
}

// TestStopEndsOpenSessions: the row of scope alone, without any session being ended, takes everything from every kind of open
// session at its next statement; and its own clock takes it from an open cursor.
func TestStopEndsOpenSessions(t *testing.T) {
	for mode, how := range modes {
		t.Run(mode, func(t *testing.T) { stopEnds(t, newDatabase(t, how)) })
	}
}

func stopEnds(t *testing.T, d *database) {
	t.Helper()
	l := lease("transactions")
	c := d.mint(l)
	plain, open := d.session(c), d.session(c)
	rowsIn := func(conn *pgx.Conn, sql string) (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), d.says(sql)).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	exec(t, open, "BEGIN")
	exec(t, plain, d.says("PREPARE q AS SELECT count(id) FROM remit.transactions"))
	for range 6 { // five custom plans, then the generic one
		if n := rowsIn(plain, "EXECUTE q"); n != 100 {
			t.Fatalf("%d rows", n)
		}
	}
	if n := rowsIn(open, "SELECT count(*) FROM remit.transactions"); n != 100 {
		t.Fatalf("%d rows", n)
	}
	exec(t, d.admin, "SELECT remit.lease_stop('"+strings.TrimPrefix(string(l.ID), "lease-")+"')")
	for name, n := range map[string]int{"a prepared statement": rowsIn(plain, "EXECUTE q"), "an open transaction": rowsIn(open, "SELECT count(*) FROM remit.transactions")} {
		if n != 0 {
			t.Errorf("%s sees %d rows after the end", name, n)
		}
	}
}

// TestMaskedColumns: what a rule masks reads as NULL, whatever the holder writes; what the view cannot mask is not leased.
func TestMaskedColumns(t *testing.T) {
	d := newDatabase(t, nil)
	l := lease("transactions")
	l.Masks = []string{"amount", "note"} // note is not shown at all
	c := d.mint(l)
	conn, n := d.session(c), 0
	for sql, want := range map[string]int{
		"SELECT count(*) FROM remit.transactions":                                 100,
		"SELECT count(amount) FROM remit.transactions":                            0,
		"SELECT count(created) FROM remit.transactions":                           100,
		"SELECT count(*) FROM remit.transactions WHERE amount > 0":                0,
		"SELECT count(*) FROM remit.transactions t WHERE t::text LIKE '%,,%'":     100,
		"SELECT count(*) FROM remit.transactions WHERE amount IS NULL AND id > 0": 100,
	} {
		if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d, %v", sql, n, err)
		}
	}
	if !strings.Contains(strings.Join(c.Bounds, "\n"), "masked, read as NULL: amount") {
		t.Errorf("%v", c.Bounds)
	}
	if n, err := count(t.Context(), d.mint(lease("transactions")), "SELECT count(amount) FROM remit.transactions"); err != nil || n != 100 {
		t.Errorf("without a mask: %d, %v", n, err)
	}
	l = lease("amounts")
	l.Masks = []string{"amount"}
	if _, err := d.driver.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("what cannot be masked was leased: %v", err)
	}
}

// TestRowLimit: a lease with limits: rows sees as many rows and no other ones, whatever its holder asks and however often; a view that
// counts no rows gives none.
func TestRowLimit(t *testing.T) {
	d := newDatabase(t, countRows)
	l := lease("transactions")
	l.Rows = 7
	c := d.mint(l)
	first, second := d.session(c), d.session(c)
	exec(t, first, "SET plan_cache_mode = force_generic_plan; SET enable_sort = off; SET enable_indexscan = off")
	n := 0
	for sql, want := range map[string]int{
		"SELECT count(*) FROM remit.transactions":                                                        7,
		"SELECT count(*) FROM remit.transactions WHERE id < 1864":                                        0, // the seven are 1864, 1884 … 1984
		"SELECT count(*) FROM remit.transactions WHERE id = 4":                                           0, // one of its customer's
		"SELECT count(*) FROM remit.transactions WHERE amount > 0 AND id = 1984":                         1,
		"SELECT count(*) FROM (SELECT id FROM remit.transactions ORDER BY id OFFSET 7) t":                0,
		"SELECT count(DISTINCT id) FROM (TABLE remit.transactions UNION ALL TABLE remit.transactions) t": 7,
		"SELECT min(id) FROM remit.transactions":                                                         1864,
	} {
		for _, conn := range []*pgx.Conn{first, second} {
			if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil || n != want {
				t.Errorf("%s: %d, %v", sql, n, err)
			}
		}
	}
	if !strings.Contains(strings.Join(c.Bounds, "\n"), "of these rows only 7, those with the greatest id") {
		t.Errorf("%v", c.Bounds)
	}
	if err := second.Close(t.Context()); err != nil { // a lease has two sessions
		t.Error(err)
	}
	tried := func() remit.TrialOutcome {
		t.Helper()
		trials, err := d.driver.Try(t.Context(), l, c)
		i := slices.IndexFunc(trials, func(tr remit.Trial) bool { return tr.Act == "read more than 7 rows" })
		if err != nil || i < 0 {
			t.Fatalf("%v %+v", err, trials)
		}
		return trials[i].Outcome
	}
	if o := tried(); o != remit.TrialRefused {
		t.Errorf("the trial: %s", o)
	}
	exec(t, d.admin, "UPDATE remit.scope SET most = NULL")
	if o := tried(); o != remit.TrialPassed {
		t.Errorf("the trial does not see a limit that is gone: %s", o)
	}
	if n, err := count(t.Context(), d.mint(lease("transactions")), "SELECT count(*) FROM remit.transactions"); err != nil || n != 100 {
		t.Errorf("without a limit: %d, %v", n, err)
	}
	l = lease("amounts")
	l.Rows = 7
	if _, err := d.driver.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("a view that counts no rows was leased with a limit: %v", err)
	}
}

// countRows has the view of transactions count rows by their id.
func countRows(c *postgres.Config) {
	c.Views = slices.Clone(c.Views)
	c.Views[0].LimitBy = "id"
}

func TestRowsAreCountedByAKey(t *testing.T) {
	d := newDatabase(t, countRows)
	for _, column := range []string{"amount", "customer_id"} {
		d.cfg.Views[0].LimitBy = column
		if _, err := d.admin.Exec(t.Context(), d.remake().Setup()); err == nil || !strings.Contains(err.Error(), "is not unique and not null") {
			t.Errorf("rows counted by %s: %v", column, err)
		}
		exec(t, d.admin, "ROLLBACK")
	}
}

func TestExpiryEndsACursorWithoutRemit(t *testing.T) {
	for mode, how := range map[string]func(*postgres.Config){"views": nil, "policies": byPolicies, "views that count": countRows} {
		t.Run(mode, func(t *testing.T) { expiryEnds(t, newDatabase(t, how)) })
	}
}

// expiryEnds: no cursor and no prepared statement gives a row after the expiry, in a snapshot of before.
func expiryEnds(t *testing.T, d *database) {
	t.Helper()
	l := lease("transactions")
	l.Expires = time.Now().Add(1500 * time.Millisecond)
	conn := d.session(d.mint(l))
	exec(t, conn, d.says("BEGIN ISOLATION LEVEL REPEATABLE READ; PREPARE q AS SELECT id FROM remit.transactions; DECLARE c CURSOR FOR SELECT id FROM remit.transactions; MOVE 3 IN c"))
	time.Sleep(time.Until(l.Expires) + 50*time.Millisecond)
	tag, err := conn.Exec(t.Context(), "MOVE ALL IN c")
	if err != nil || tag.RowsAffected() != 0 {
		t.Errorf("an open cursor moved over %d rows after the expiry: %v", tag.RowsAffected(), err)
	}
	if tag, err = conn.Exec(t.Context(), "EXECUTE q", pgx.QueryExecModeSimpleProtocol); err != nil || tag.RowsAffected() != 0 {
		t.Errorf("a prepared statement gave %d rows after the expiry: %v", tag.RowsAffected(), err)
	}
}

func TestRevokeEndsHardSessions(t *testing.T) {
	for name, hold := range map[string]string{
		"a snapshot and a cursor":      "BEGIN ISOLATION LEVEL SERIALIZABLE; DECLARE c CURSOR FOR SELECT id FROM remit.transactions; FETCH 1 FROM c",
		"a lock on its own role":       "BEGIN READ WRITE; ALTER ROLE CURRENT_USER SET work_mem = '1MB'",
		"a new password of its own":    "BEGIN READ WRITE; ALTER ROLE CURRENT_USER PASSWORD 'mine'; COMMIT",
		"default rights of its own":    "BEGIN READ WRITE; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC; COMMIT",
		"no timeouts and a long sleep": "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT 1",
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t, nil)
			l := lease("transactions")
			conn := d.session(d.mint(l))
			exec(t, conn, hold)
			began := time.Now()
			if err := d.driver.Revoke(t.Context(), l); err != nil {
				t.Fatal(errorText(err))
			}
			t.Logf("ended in %v", time.Since(began))
			if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
				t.Error("the session lives on")
			}
			if left, err := d.standing(t.Context(), l); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestLeasesCannotAddUp: rights that one lease's role has from another's, as a mistaken administrator can give them, must not make
// one lease with the rows of the first and the columns of the second. The holder cannot do it (PostgreSQL 15 and later).
func TestLeasesCannotAddUp(t *testing.T) {
	for mode, how := range modes {
		t.Run(mode, func(t *testing.T) { cannotAddUp(t, newDatabase(t, how)) })
	}
}

func cannotAddUp(t *testing.T, d *database) {
	t.Helper()
	a, b := lease("amounts"), lease("transactions")
	b.Scope["rows"] = rows(6)
	ca, cb := d.mint(a), d.mint(b)
	add := "GRANT " + ca.Fields["user"] + " TO " + cb.Fields["user"]
	if err := as(t.Context(), ca, "BEGIN READ WRITE; "+add+"; COMMIT"); err == nil {
		t.Error("a holder gave its role away")
	}
	exec(t, d.admin, add)
	wants := map[string]int{"transactions": 100, "amounts": 0}
	if d.policies() {
		wants["transactions"] = 0 // the same table: both leases' policies restrict it, to nothing
	}
	for view, want := range wants {
		if n, err := count(t.Context(), cb, d.says("SELECT count(amount) FROM remit."+view)); n != want {
			t.Errorf("%s: %d rows, %v", view, n, err)
		}
	}
	for range 2 {
		if n, _ := count(t.Context(), ca, d.says("SELECT count(amount) FROM remit.amounts")); n != 100 {
			t.Errorf("the first lease sees %d rows", n)
		}
		if err := d.driver.Revoke(t.Context(), b); err != nil {
			t.Fatal(errorText(err))
		}
	}
}

// TestWaysAround: a plan of before, another role of its own, the table against itself and statistics show nothing of others.
func TestWaysAround(t *testing.T) {
	for mode, how := range modes {
		d := newDatabase(t, how)
		conn := d.session(d.mint(lease("transactions")))
		exec(t, conn, d.says("PREPARE q AS SELECT count(id) FROM remit.transactions WHERE customer_id <> 5"))
		for name, sql := range map[string]string{
			"a plan of before": "EXECUTE q",
			"its group's role": "SET ROLE remit_" + d.cfg.Installation + "_v_transactions; EXECUTE q",
			"a new plan as it": "SET ROLE remit_" + d.cfg.Installation + "_v_transactions; SELECT count(id) FROM remit.transactions WHERE customer_id <> 5",
			"itself beside it": "SELECT count(a.id) FROM remit.transactions a WHERE EXISTS (SELECT id FROM remit.transactions b WHERE b.id = a.id + 1)",
			"statistics":       "SELECT count(*) FROM pg_stats WHERE tablename = 'transactions'",
			"other's scopes":   map[bool]string{false: "SELECT 0", true: "SELECT count(*) FROM remit.mine WHERE role <> session_user"}[d.policies()],
		} {
			n := -1
			reader := conn.PgConn().Exec(t.Context(), d.says(sql))
			results, err := reader.ReadAll()
			if err == nil {
				_, err = fmt.Sscan(string(results[len(results)-1].Rows[0][0]), &n)
			}
			if err != nil || n != 0 {
				t.Errorf("%s, %s: %d rows of others, %v", mode, name, n, err)
			}
			exec(t, conn, "RESET ROLE")
		}
	}
}

func TestConcurrentLeasesKeepApart(t *testing.T) {
	d := newDatabase(t, nil)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			l := lease("transactions")
			l.Scope["rows"] = rows(int64(1 + i%20))
			c, err := d.driver.Mint(t.Context(), l)
			if err != nil {
				t.Error(errorText(err))
				return
			}
			if n, err := count(t.Context(), c, fmt.Sprintf("SELECT count(*) FROM remit.transactions WHERE customer_id <> %d", 1+i%20)); n != 0 || err != nil {
				t.Errorf("%d rows of others, %v", n, err)
			}
			if err := d.driver.Revoke(t.Context(), l); err != nil {
				t.Error(errorText(err))
			}
		})
	}
	wg.Wait()
	if ids, err := d.driver.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
}

func TestServerRestarts(t *testing.T) {
	d := newDatabase(t, nil)
	a, b := lease("transactions"), lease("transactions")
	d.mint(a)
	exec(t, d.admin, "CHECKPOINT")
	d.admin.Close(t.Context()) //nolint:errcheck // it is about to break
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.admin = connect(t, server.Admin(d.name))
	c := d.mint(b) // over a connection that broke without a word
	if n, err := count(t.Context(), c, "SELECT count(*) FROM remit.transactions"); n != 100 {
		t.Errorf("%d rows, %v", n, err)
	}
	for _, l := range []remit.Lease{a, b} {
		if err := d.driver.Revoke(t.Context(), l); err != nil {
			t.Error(errorText(err))
		}
	}
}

// TestWhichCommitsWait: where every commit waits for a standby that is not there, leases are made, and sessions see nothing after a revocation, which
// is not confirmed. Where agents may read at a standby, no lease is handed over either.
func TestWhichCommitsWait(t *testing.T) {
	for agents, waits := range map[string]bool{"": false, "127.0.0.1:1": true} {
		d := newDatabase(t, func(c *postgres.Config) { c.Agents = agents })
		exec(t, d.admin, "ALTER ROLE remit_"+d.cfg.Installation+"_broker SET synchronous_commit = on")
		standby := func(sql string) {
			t.Helper()
			exec(t, d.admin, "ALTER SYSTEM "+sql)
			exec(t, d.admin, "SELECT pg_reload_conf(), pg_sleep(0.2)")
		}
		in := func(f func(ctx context.Context) error) error {
			ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
			defer cancel()
			return f(ctx)
		}
		l, roleless := lease("transactions"), lease("transactions")
		d.mint(l)
		exec(t, d.admin, "DROP ROLE "+d.mint(roleless).Fields["user"])
		standby("SET synchronous_standby_names = 'nobody'")
		if err := in(func(ctx context.Context) error { _, err := d.driver.Mint(ctx, lease("transactions")); return err }); (err != nil) != waits {
			t.Errorf("agents %q: a mint: %v", agents, errorText(err))
		}
		if err := in(func(ctx context.Context) error { return d.driver.Revoke(ctx, roleless) }); err == nil {
			t.Errorf("agents %q: an end was confirmed that a crash can undo, where the role was gone", agents)
		}
		d.stopsAtOnce(l)
		standby("RESET synchronous_standby_names")
		for _, l := range []remit.Lease{l, roleless} {
			if err := d.driver.Revoke(t.Context(), l); err != nil {
				t.Error(errorText(err))
			}
		}
	}
}

// stopsAtOnce revokes where no commit returns: the authority is gone, and nothing is confirmed.
func (d *database) stopsAtOnce(l remit.Lease) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 4*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.driver.Revoke(ctx, l) }()
	for {
		left, err := d.standing(d.t.Context(), l)
		if err != nil {
			d.t.Fatal(err)
		}
		if !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "scope ") }) {
			break
		}
		if ctx.Err() != nil {
			d.t.Error("the authority waits for the disk")
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	select {
	case err := <-ended:
		d.t.Errorf("the end came back, with %v", errorText(err))
	default:
		cancel()
		if err := <-ended; err == nil {
			d.t.Error("an end was confirmed that a crash can undo")
		}
	}
}

func TestNoConnectionLeft(t *testing.T) {
	d := newDatabase(t, func(c *postgres.Config) { c.Timeout = 3 * time.Second })
	exec(t, d.admin, "ALTER ROLE remit_"+d.cfg.Installation+"_broker CONNECTION LIMIT 0")
	l := lease("transactions")
	if _, err := d.driver.Mint(t.Context(), l); err == nil || !strings.Contains(errorText(err), "too many connections") {
		t.Errorf("minted, or said: %v", errorText(err))
	}
	exec(t, d.admin, "ALTER ROLE remit_"+d.cfg.Installation+"_broker CONNECTION LIMIT -1")
	exec(t, d.admin, "BEGIN; LOCK TABLE remit.declared IN ACCESS EXCLUSIVE MODE")
	var wg sync.WaitGroup
	for range 20 { // all connections for minting are stuck
		wg.Go(func() { _, _ = d.driver.Mint(t.Context(), lease("transactions")) })
	}
	began := time.Now()
	if err := d.driver.Revoke(t.Context(), l); err != nil || time.Since(began) > 2500*time.Millisecond { // they give up after 3 s
		t.Errorf("ending waits for minting: %v, %v", time.Since(began), errorText(err))
	}
	wg.Wait()
	exec(t, d.admin, "ROLLBACK")
	d.cfg.Timeout = 0
	d.driver = d.remake()
	d.mint(lease("transactions"))
}
