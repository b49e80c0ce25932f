// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/credential/credentialtest"
	"remit/internal/credential/postgres"
	"remit/internal/testpostgres"
)

// server is one for all tests of the package; each test makes a database of its own.
var server *testpostgres.Server

func TestMain(m *testing.M) {
	s, err := testpostgres.Start(context.Background(), testpostgres.Config{})
	if err != nil && !errors.Is(err, testpostgres.ErrMissing) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	server = s
	code := m.Run()
	if server != nil {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var databases atomic.Int32

// database is a fresh database with tables of customers 1 to 20, a driver for it, and the administrator's connection.
type database struct {
	t      *testing.T
	name   string
	cfg    postgres.Config
	driver *postgres.Driver
	admin  *pgx.Conn
	hold   *holder
}

var views = []postgres.View{
	{Name: "transactions", Table: "public.transactions", Columns: []string{"id", "customer_id", "amount", "created"}, Rows: map[string]string{"customer_id": "bigint"},
		Mask: []string{"amount", "created"}},
	{Name: "amounts", Table: "public.transactions", Columns: []string{"amount"}, Rows: map[string]string{"customer_id": "bigint"}},
	{Name: "notes", Table: "public.transactions", Columns: []string{"id", "note"}, Rows: map[string]string{"customer_id": "bigint", "region": "text"}},
	{Name: "new_transactions", Table: "public.transactions", Action: "insert", Columns: []string{"id", "customer_id", "amount"}, Rows: map[string]string{"customer_id": "bigint"}},
	{Name: "set_amount", Table: "public.transactions", Action: "update", Columns: []string{"amount"}, Reads: []string{"id", "customer_id", "amount"}, Rows: map[string]string{"customer_id": "bigint"}},
	{Name: "drop_transactions", Table: "public.transactions", Action: "delete", Reads: []string{"id", "customer_id"}, Rows: map[string]string{"customer_id": "bigint"}},
}

const tables = `
CREATE TABLE public.transactions (id bigint PRIMARY KEY, customer_id bigint NOT NULL, region text NOT NULL DEFAULT 'eu', amount numeric(12,2) NOT NULL,
	created timestamptz NOT NULL DEFAULT now(), note text NOT NULL DEFAULT 'secret note');
INSERT INTO public.transactions (id, customer_id, amount) SELECT i, 1 + i % 20, i FROM generate_series(1, 2000) i;
CREATE INDEX ON public.transactions (customer_id);
CREATE TABLE public.salaries (id bigint PRIMARY KEY, amount numeric NOT NULL);
INSERT INTO public.salaries VALUES (1, 100000);
ANALYZE;`

// modes are how a database holds leases: by views, or by policies at the tables.
var modes = map[string]func(*postgres.Config){"views": nil, "policies": byPolicies}

// byPolicies has all views held at their tables, without masks.
func byPolicies(c *postgres.Config) {
	c.Views = slices.Clone(c.Views)
	for i := range c.Views {
		c.Views[i].RowSecurity, c.Views[i].Mask = true, nil
	}
}

// policies says that the tables hold leases.
func (d *database) policies() bool { return d.cfg.Views[0].RowSecurity }

// says is SQL about views, as it is said where the tables hold leases.
func (d *database) says(sql string) string {
	if !d.policies() {
		return sql
	}
	var names []string
	for _, v := range views {
		names = append(names, "remit."+v.Name, v.Table)
	}
	return strings.NewReplacer(names...).Replace(sql)
}

// newDatabase makes a database and runs the set-up, unless the host has no server.
func newDatabase(t *testing.T, change func(*postgres.Config)) *database {
	t.Helper()
	if server == nil {
		t.Skip(testpostgres.ErrMissing)
	}
	n := databases.Add(1)
	d := &database{t: t, name: fmt.Sprintf("payments%d", n), hold: &holder{}}
	root := connect(t, server.Admin("postgres"))
	exec(t, root, "CREATE DATABASE "+d.name)
	d.admin = connect(t, server.Admin(d.name))
	exec(t, d.admin, tables)
	d.cfg = postgres.Config{Server: fmt.Sprintf("127.0.0.1:%d", server.Port), Database: d.name, Installation: fmt.Sprintf("t%d", n), Views: views,
		Password: remit.NewSecret("broker's own"), Dial: d.hold.dial}
	if change != nil {
		change(&d.cfg)
	}
	d.driver = d.remake()
	if d.policies() {
		exec(t, d.admin, "ALTER TABLE public.transactions ENABLE ROW LEVEL SECURITY; CREATE POLICY everybody ON public.transactions USING (true)")
	}
	exec(t, d.admin, d.driver.Setup())
	exec(t, d.admin, fmt.Sprintf("ALTER ROLE remit_t%d_broker PASSWORD 'broker''s own'", n))
	return d
}

func (d *database) remake() *postgres.Driver {
	d.t.Helper()
	driver, err := postgres.New(d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	return driver
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func exec(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%.300s: %v", sql, err)
	}
}

func text(s string) remit.Value { return remit.StringValue(s) }

func list(words ...string) remit.Value {
	var vs []remit.Value
	for _, w := range words {
		vs = append(vs, text(w))
	}
	return remit.ListValue(vs...)
}

func rows(customer int64) remit.Value {
	return remit.ObjectValue(map[string]remit.Value{"customer_id": remit.IntValue(customer)})
}

// lease is pending and for the view of that name, customer 5.
func lease(view string) remit.Lease {
	now := time.Now()
	l := remit.Lease{ID: remit.NewLeaseID(), Grant: remit.NewGrantID(), Agent: "tool/read", Target: "payments-db", Action: "postgres.select",
		Issued: now, Expires: now.Add(5 * time.Minute), MintBefore: now.Add(8 * time.Second), State: remit.GrantPending}
	for _, v := range views {
		if v.Name != view {
			continue
		}
		l.Scope = remit.Args{"table": text(v.Table), "rows": rows(5)}
		if v.Action != "" {
			l.Action = "postgres." + v.Action
		}
		if len(v.Columns) > 0 {
			l.Scope["columns"] = list(v.Columns...)
		}
		if len(v.Reads) > 0 {
			l.Scope["reads"] = list(v.Reads...)
		}
	}
	return l
}

// login connects with a credential, as its holder does.
func login(ctx context.Context, c remit.Credential, database string) (*pgx.Conn, error) {
	if database == "" {
		database = c.Fields["database"]
	}
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=%s dbname=%s sslmode=%s", c.Fields["host"], c.Fields["port"], c.Fields["user"], database, c.Fields["sslmode"]))
	if err != nil {
		return nil, err
	}
	cfg.Password, cfg.DefaultQueryExecMode = c.Secret.Reveal(), pgx.QueryExecModeSimpleProtocol
	return pgx.ConnectConfig(ctx, cfg)
}

// as runs one statement as the holder in a session of its own.
func as(ctx context.Context, c remit.Credential, sql string) error {
	conn, err := login(ctx, c, "")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the server notices
	_, err = conn.Exec(ctx, sql)
	return err
}

func count(ctx context.Context, c remit.Credential, sql string) (n int, err error) {
	conn, err := login(ctx, c, "")
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the server notices
	err = conn.QueryRow(ctx, sql).Scan(&n)
	return n, err
}

// standing is what the administrator sees of a lease.
func (d *database) standing(ctx context.Context, l remit.Lease) ([]string, error) {
	rows, err := d.admin.Query(ctx, `SELECT 'role ' || rolname FROM pg_roles WHERE rolname LIKE '%' || $1 UNION ALL SELECT 'scope ' || role FROM remit.scope WHERE role LIKE '%' || $1
		UNION ALL SELECT 'session ' || pid FROM pg_stat_activity WHERE usename LIKE '%' || $1`, strings.TrimPrefix(string(l.ID), "lease-"))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// live is the driver at its database for one view, as the suite of all drivers sees it.
func (d *database) live(view, act string) credentialtest.Live {
	forbidden := map[string]func(context.Context, remit.Lease, remit.Credential) error{}
	for name, sql := range map[string]string{
		"the table itself":   map[bool]string{false: "SELECT count(*) FROM public.transactions", true: "SELECT note FROM public.transactions"}[d.policies()],
		"past the policies":  map[bool]string{false: "TABLE remit.mine", true: "SET row_security = off; SELECT count(id) FROM public.transactions"}[d.policies()],
		"another table":      "SELECT count(*) FROM public.salaries",
		"the scopes":         "SELECT count(*) FROM remit.scope",
		"a temporary table":  "CREATE TEMP TABLE x (i int)",
		"a table":            "CREATE TABLE remit.x (i int)",
		"a large object":     "SELECT lo_create(0)",
		"the owner's role":   "SET ROLE remit_" + d.cfg.Installation + "_owner",
		"the definer's role": "SET ROLE remit_" + d.cfg.Installation + "_definer",
		"a lease":            "SELECT remit.lease_list()",
	} {
		forbidden[name] = func(ctx context.Context, _ remit.Lease, c remit.Credential) error { return as(ctx, c, sql) }
	}
	forbidden["another database"] = func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
		conn, err := login(ctx, c, "postgres")
		if err == nil {
			_ = conn.Close(ctx)
		}
		return err
	}
	return credentialtest.Live{
		Driver: d.driver, Lease: func() remit.Lease { return lease(view) }, Forbidden: forbidden, Standing: d.standing, Hold: d.hold.next,
		Act: func(ctx context.Context, _ remit.Lease, c remit.Credential) error { return as(ctx, c, d.says(act)) },
		Widen: func(ctx context.Context, l remit.Lease) error {
			_, err := d.admin.Exec(ctx, fmt.Sprintf("CREATE ROLE wide_%s; GRANT SELECT (amount) ON public.salaries TO wide_%[1]s; GRANT USAGE ON SCHEMA public TO wide_%[1]s; GRANT wide_%[1]s TO remit_%[1]s_%[2]s",
				d.cfg.Installation, strings.TrimPrefix(string(l.ID), "lease-")), pgx.QueryExecModeSimpleProtocol)
			return err
		},
		Snapshot: func(ctx context.Context) (out string, err error) {
			err = d.admin.QueryRow(ctx, `SELECT (SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM public.transactions t) || (SELECT string_agg(r::text, '' ORDER BY rolname) FROM pg_roles r WHERE rolname LIKE 'remit_'||$1||'_%') ||
				(SELECT string_agg(s::text, '') FROM remit.scope s) || (SELECT count(*) FROM pg_class) || (SELECT count(*) FROM pg_largeobject_metadata)`, d.cfg.Installation).Scan(&out)
			return out, err
		},
	}
}

// holder delays, on its way to the server, the first message that carries a verifier after next was called.
type holder struct {
	mu      sync.Mutex
	armed   time.Duration
	arrived chan struct{}
}

func (h *holder) next(d time.Duration) func() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed, h.arrived = d, make(chan struct{})
	arrived := h.arrived
	return func() {
		<-arrived
		time.Sleep(300 * time.Millisecond) // the server carries it out
	}
}

func (h *holder) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	return &heldConn{Conn: c, h: h}, err
}

type heldConn struct {
	net.Conn
	h    *holder
	held atomic.Bool
}

func (c *heldConn) Write(b []byte) (int, error) {
	if c.held.Load() {
		return len(b), nil // what follows was given up with its sender
	}
	c.h.mu.Lock()
	d, arrived := c.h.armed, c.h.arrived
	hold := d > 0 && bytes.Contains(b, []byte("SCRAM-SHA-256$"))
	if hold {
		c.h.armed = 0
		c.held.Store(true)
	}
	c.h.mu.Unlock()
	if !hold {
		return c.Conn.Write(b)
	}
	message := bytes.Clone(b)
	go func() {
		time.Sleep(d)
		_ = c.SetWriteDeadline(time.Time{})
		_, _ = c.Conn.Write(message)
		close(arrived)
		time.Sleep(time.Second)
		_ = c.Conn.Close()
	}()
	return len(b), nil
}

// Close leaves a connection open on which something is still on its way.
func (c *heldConn) Close() error {
	if c.held.Load() {
		return nil
	}
	return c.Conn.Close()
}
