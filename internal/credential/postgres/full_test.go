// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"remit"
	"remit/internal/credential/postgres"
	"remit/internal/testpostgres"
)

// smallServer is a server whose data lie on a small disk.
func smallServer(t *testing.T) (*testpostgres.Server, string) {
	t.Helper()
	if server == nil {
		t.Skip(testpostgres.ErrMissing)
	}
	disk := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(disk), 0o755), os.Chmod(disk, 0o755)); err != nil { //nolint:gosec // the server has a user of its own
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=128m,mode=0755"); err != nil {
		t.Skipf("needs a small file system of its own, which cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	t.Setenv("TMPDIR", disk)
	s, err := testpostgres.Start(t.Context(), testpostgres.Config{Settings: map[string]string{"restart_after_crash": "off", "max_wal_size": "32MB", "log_destination": "stderr"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s, filepath.Join(disk, "ballast")
}

// fill takes what is left of the disk.
func fill(t *testing.T, ballast string) {
	t.Helper()
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it is full
	for block := make([]byte, 4<<10); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskFullAtTheServer: a server whose disk is full gives a clear error and no login, whether it refuses or goes down; what it had given
// can be ended once there is room again, and nothing of what failed is left.
func TestDiskFullAtTheServer(t *testing.T) {
	small, ballast := smallServer(t)
	d := databaseAt(t, small, "full", nil)
	leases := []remit.Lease{lease("transactions")}
	first := d.mint(leases[0])
	open := d.session(first)
	fill(t, ballast)
	failed := 0
	for end := time.Now().Add(time.Minute); failed < 3; {
		if time.Now().After(end) {
			t.Fatalf("%d logins after the disk was full: is it?", len(leases))
		}
		l := lease("transactions")
		leases = append(leases, l)
		c, err := d.driver.Mint(t.Context(), l)
		if err == nil {
			continue
		}
		failed++
		if says := errorText(err); !c.Secret.IsZero() || !strings.Contains(says, "No space left") && !strings.Contains(says, "connect") && !strings.Contains(says, "EOF") && !strings.Contains(says, "terminating") {
			t.Errorf("a login, or no clear error: %s", says)
		} else {
			t.Log(says)
		}
	}
	// Ending needs no room to take the authority: whatever became of the role, its holder sees nothing.
	t.Logf("ending on a full disk: %v", errorText(d.driver.Revoke(t.Context(), leases[0])))
	var n int
	if err := open.QueryRow(t.Context(), "SELECT count(*) FROM remit.transactions").Scan(&n); err == nil && n > 0 {
		t.Errorf("an open session sees %d rows after its end", n)
	}
	if n, err := count(t.Context(), first, "SELECT count(*) FROM remit.transactions"); err == nil && n > 0 {
		t.Errorf("a new session sees %d rows after its end", n)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := small.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		if err := d.driver.Revoke(t.Context(), l); err != nil {
			t.Fatalf("with room again: %v", errorText(err))
		}
	}
	if ids, err := d.driver.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("left: %v, %v", ids, errorText(err))
	}
	c := d.mint(lease("transactions"))
	if n, err := count(t.Context(), c, "SELECT count(*) FROM remit.transactions"); n != 100 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// databaseAt is a database with a driver on a server of its own.
func databaseAt(t *testing.T, s *testpostgres.Server, installation string, change func(*postgres.Config)) *database {
	t.Helper()
	root := connect(t, s.Admin("postgres"))
	exec(t, root, "CREATE DATABASE payments")
	d := &database{t: t, name: "payments", hold: &holder{}}
	d.admin = connect(t, s.Admin(d.name))
	exec(t, d.admin, tables)
	d.cfg = postgres.Config{Server: fmt.Sprintf("127.0.0.1:%d", s.Port), Database: d.name, Installation: installation, Views: views, Password: remit.NewSecret("broker's own")}
	if change != nil {
		change(&d.cfg)
	}
	d.driver = d.remake()
	exec(t, d.admin, d.driver.Setup())
	exec(t, d.admin, "ALTER ROLE remit_"+installation+"_broker PASSWORD 'broker''s own'")
	return d
}

// TestCrashForgetsNoEnd: a server that crashes the moment after has forgotten no end, though it may forget a lease that it just made: that
// one is gone as a whole, or works as a whole.
func TestCrashForgetsNoEnd(t *testing.T) {
	if server == nil {
		t.Skip(testpostgres.ErrMissing)
	}
	s, err := testpostgres.Start(t.Context(), testpostgres.Config{Durable: true, Settings: map[string]string{"autovacuum": "off", "restart_after_crash": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	d := databaseAt(t, s, "crash", nil)
	ended, fresh := lease("transactions"), lease("transactions")
	d.mint(ended)
	exec(t, d.admin, "CHECKPOINT") // the server knows it for good
	var writer int                 // of what no commit waits for
	if err := d.admin.QueryRow(t.Context(), "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").Scan(&writer); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(writer, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := d.driver.Revoke(t.Context(), ended); err != nil {
		t.Fatal(errorText(err))
	}
	c := d.mint(fresh)
	if n, err := count(t.Context(), c, "SELECT count(*) FROM remit.transactions"); n != 100 || err != nil {
		t.Errorf("%d rows before the crash, %v", n, err)
	}
	if err := errors.Join(syscall.Kill(writer, syscall.SIGKILL), s.Restart(t.Context())); err != nil { // as one that ran out of memory
		t.Fatal(err)
	}
	d.admin = connect(t, s.Admin(d.name))
	if left, err := d.standing(t.Context(), ended); err != nil || len(left) > 0 {
		t.Errorf("an end was forgotten: %v, %v", left, err)
	}
	left, err := d.standing(t.Context(), fresh)
	t.Logf("of the lease made last: %v", left)
	if err != nil || len(left) != 0 && len(left) != 2 {
		t.Errorf("a lease by halves: %v, %v", left, err)
	}
	if err := d.driver.Revoke(t.Context(), fresh); err != nil {
		t.Error(errorText(err))
	}
	d.mint(lease("transactions"))
}
