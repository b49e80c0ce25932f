// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"remit/internal/credential/postgres"
	"remit/internal/testpostgres"
)

// follower starts a streaming replica of p, and returns its port.
func follower(t *testing.T, p *testpostgres.Server) int {
	t.Helper()
	data := filepath.Join(p.Dir, "replica")
	out, err := p.Command(t.Context(), "pg_basebackup", nil, "-h", p.Dir, "-p", strconv.Itoa(p.Port), "-U", "postgres", "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync").CombinedOutput()
	if err != nil {
		t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	c := p.Command(t.Context(), "postgres", nil, "-D", data, "-c", "listen_addresses=127.0.0.1", "-c", fmt.Sprintf("port=%d", port), "-c", "unix_socket_directories="+data,
		"-c", "hot_standby_feedback=on", "-c", "max_standby_streaming_delay=-1", "-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "logging_collector=off")
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGQUIT) }
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Signal(syscall.SIGQUIT); _ = c.Wait() })
	return port
}

// TestReplica: agents read at a replica, leases are made and ended at the primary. A mint that waits for the replica hands over a login that
// works there at once. While its replay stands still, a login of later is unknown there, and one that was ended goes on seeing its own rows,
// until its clock, which no replay sets; after the replay it sees nothing.
func TestReplica(t *testing.T) {
	if server == nil {
		t.Skip(testpostgres.ErrMissing)
	}
	p, err := testpostgres.Start(t.Context(), testpostgres.Config{Settings: map[string]string{"synchronous_commit": "on"},
		HBA: "local all postgres trust\nlocal replication postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	d := databaseAt(t, p, "lag", func(c *postgres.Config) { c.Agents = "127.0.0.1:1" })
	port := follower(t, p)
	d.cfg.Agents = fmt.Sprintf("127.0.0.1:%d", port)
	d.driver = d.remake()
	exec(t, d.admin, "ALTER SYSTEM SET synchronous_standby_names = '*'")
	exec(t, d.admin, "ALTER ROLE remit_lag_broker SET synchronous_commit = remote_apply")
	exec(t, d.admin, "SELECT pg_reload_conf()")
	ctl := func(sql string) {
		t.Helper()
		c := connect(t, fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable", filepath.Join(p.Dir, "replica"), port, d.name))
		exec(t, c, sql)
		_ = c.Close(t.Context())
	}
	live := lease("transactions")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var up bool // the replica follows
		if err := d.admin.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync')").Scan(&up); err != nil || time.Now().After(end) {
			t.Fatalf("the replica does not follow: %v", err)
		}
		if up {
			break
		}
	}
	short := lease("transactions")
	short.Expires = time.Now().Add(12 * time.Second)
	c := d.mint(live)
	session, brief := d.session(c), d.session(d.mint(short)) // at once
	see := func(conn *pgx.Conn) (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM remit.transactions").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n, m := see(session), see(brief); n != 100 || m != 100 {
		t.Fatalf("%d and %d rows at the replica", n, m)
	}
	exec(t, d.admin, "ALTER ROLE remit_lag_broker SET synchronous_commit = local")
	d.driver = d.remake()
	ctl("SELECT pg_wal_replay_pause()")
	if err := d.driver.Revoke(t.Context(), live); err != nil {
		t.Fatal(errorText(err))
	}
	late := d.mint(lease("transactions"))
	if _, err := login(t.Context(), late, ""); err == nil {
		t.Error("a lease is known at a replica that has not replayed it")
	}
	if n := see(session); n != 100 {
		t.Errorf("%d rows before the end was replayed: the documented bound is wrong", n)
	}
	time.Sleep(time.Until(short.Expires) + 50*time.Millisecond)
	if n := see(brief); n != 0 {
		t.Errorf("%d rows after the expiry, at a replica that stands still", n)
	}
	ctl("SELECT pg_wal_replay_resume()")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		n := 0
		err := session.QueryRow(t.Context(), "SELECT count(*) FROM remit.transactions").Scan(&n)
		if err == nil && n == 0 || err != nil && sqlstate(err) == "refused: 42501" { // its role is gone, too
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the end never came to the replica: %d rows, %v", n, err)
		}
	}
	if n, err := count(t.Context(), late, "SELECT count(*) FROM remit.transactions"); n != 100 || err != nil {
		t.Errorf("after the replay: %d rows, %v", n, err)
	}
}
