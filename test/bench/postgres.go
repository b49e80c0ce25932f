// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/api"
	"remit/internal/testpostgres"
)

const (
	dbAgents = 8  // lease holders
	dbAtOnce = 32 // requests at once, at most
	dbFiles  = `kind: Target
name: bench-db
type: postgres
server: "127.0.0.1:PORT"
database: bench
installation: bench
password: {file: PASSWORD}
connections: 16
views: [{name: accounts, table: public.pgbench_accounts, columns: [aid, bid, abalance], rows: {bid: integer}}]
---
kind: Workflow
name: read
parameters: {branch: {type: integer}}
start: {by: [operator/bench], expires: 2h}
stages:
- name: only
  end: {by: [operator/bench]}
  may:
`
)

// database is a server with pgbench's tables, as production runs it, and an installation that leases rows of it.
type database struct {
	*installation
	pg      *testpostgres.Server
	admin   *pgx.Conn
	holders []holder
}

// holder is an agent with its run token.
type holder struct {
	client *http.Client
	form   string
	token  string
}

// postgres measures leases of a database: their rate beside CREATE ROLE with a password as others make it, how soon an open session
// sees nothing more, and what reading through a lease's view costs.
func (b *bench) postgres(ctx context.Context) error {
	d, err := b.database(ctx)
	if errors.Is(err, testpostgres.ErrMissing) {
		fmt.Fprintln(os.Stderr, "postgres: left out:", err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, *database) error{b.leases, b.sessions, b.views} {
		if err := part(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) database(ctx context.Context) (*database, error) {
	pg, err := testpostgres.Start(ctx, testpostgres.Config{Durable: true, Settings: map[string]string{"shared_buffers": "256MB", "log_min_messages": "error"}})
	if err != nil {
		return nil, err
	}
	b.stops = append(b.stops, func() { _ = pg.Stop() })
	d := &database{pg: pg}
	root, err := pgx.Connect(ctx, pg.Admin("postgres"))
	if err != nil {
		return nil, err
	}
	defer root.Close(ctx) //nolint:errcheck // a connection of a moment
	if _, err := root.Exec(ctx, "CREATE DATABASE bench"); err != nil {
		return nil, err
	}
	if out, err := pg.Command(ctx, "pgbench", nil, "-i", "-q", "-s", "5", "-h", pg.Dir, "-p", fmt.Sprint(pg.Port), "-U", "postgres", "bench").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pgbench -i: %w: %s", err, out)
	}
	if d.admin, err = pgx.Connect(ctx, pg.Admin("bench")); err != nil {
		return nil, err
	}
	return d, b.lessor(ctx, d)
}

// lessor installs Remit, runs the set-up, and makes the agents.
func (b *bench) lessor(ctx context.Context, d *database) error {
	password := b.path("db-password")
	if err := os.WriteFile(password, []byte("of the broker"), 0o600); err != nil {
		return err
	}
	files := strings.NewReplacer("PORT", fmt.Sprint(d.pg.Port), "PASSWORD", password).Replace(dbFiles)
	agentFiles := ""
	for i := range dbAgents {
		files += fmt.Sprintf("  - {name: read-%d, who: %s, action: postgres.select, target: bench-db, where: {table: public.pgbench_accounts, columns: [aid, bid, abalance], rows: {bid: $branch}}, ttl: 10m}\n", i, agentName(i))
		agentFiles += fmt.Sprintf("---\nkind: Agent\nname: %s\nttl: 1h\nattest: [{unix: {uid: %d}}]\n", strings.TrimPrefix(agentName(i), "agent/"), os.Getuid())
	}
	var err error
	if d.installation, err = b.install(ctx, "postgres", map[string]string{"db.yaml": files, "agents.yaml": strings.TrimPrefix(agentFiles, "---\n")}); err != nil {
		return err
	}
	var setup api.Setup
	if err := d.installation.admin.Get(ctx, "/v1/doctor/bench-db/setup", nil, &setup); err != nil {
		return err
	}
	for _, sql := range []string{setup.Text, "ALTER ROLE remit_bench_broker PASSWORD 'of the broker'"} {
		if _, err := d.admin.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("set up the database: %w", err)
		}
	}
	if err := d.become(ctx); err != nil {
		return err
	}
	for i := range dbAgents {
		_, token, err := d.run(ctx, "read", agentName(i), map[string]string{"branch": "1"})
		if err != nil {
			return err
		}
		cfg, err := d.tls(agentName(i))
		if err != nil {
			return err
		}
		d.holders = append(d.holders, holder{&http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}, url.Values{"grant_type": {"client_credentials"},
			"client_id":             {agentID(agentName(i))},
			"authorization_details": {fmt.Sprintf(`[{"permission":"read-%d","columns":["aid","bid","abalance"]}]`, i)}}.Encode(), token})
	}
	return nil
}

// dbLease is the token endpoint's answer.
type dbLease struct {
	Password   string            `json:"access_token"`
	Grant      remit.GrantID     `json:"grant_id"`
	Credential map[string]string `json:"credential"`
}

func (d *database) lease(ctx context.Context, h *holder) (l dbLease, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+d.address+"/oauth2/token", strings.NewReader(h.form))
	if err != nil {
		return l, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Txn-Token", h.token)
	res, err := h.client.Do(req)
	if err != nil {
		return l, err
	}
	defer res.Body.Close() //nolint:errcheck // read to the end
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("a lease was refused: %d %s", res.StatusCode, text)
	}
	return l, errors.Join(err, json.Unmarshal(text, &l))
}

// repeated runs one of fs on each of n senders for a while, and returns how many a second were done and how long one takes.
func repeated(ctx context.Context, n int, d time.Duration, f func(context.Context, int) error) (float64, time.Duration, error) {
	var wg sync.WaitGroup
	var done atomic.Int64
	took, errs := make([][]time.Duration, n), make([]error, n)
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			for time.Since(began) < d && errs[i] == nil {
				start := time.Now()
				if errs[i] = f(ctx, i); errs[i] == nil {
					took[i] = append(took[i], time.Since(start))
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	if len(all) == 0 {
		return 0, 0, errors.Join(errs...)
	}
	return float64(done.Load()) / time.Since(began).Seconds(), quantile(all, 0.5), errors.Join(errs...)
}

// roles makes roles with a password and a grant, each sender over a connection of its own: what leases are compared with.
type roles struct {
	admins []*pgx.Conn
	named  atomic.Int64
}

const roleTables, rolesOnOne = 16, 400

func (d *database) roles(ctx context.Context) (r *roles, end func(), err error) {
	r = &roles{}
	end = func() {
		for _, c := range r.admins {
			_ = c.Close(ctx)
		}
	}
	for range dbAtOnce {
		c, err := pgx.Connect(ctx, d.pg.Admin("bench"))
		if err != nil {
			end()
			return nil, nil, err
		}
		r.admins = append(r.admins, c)
	}
	for i := range roleTables {
		if _, err := r.admins[0].Exec(ctx, fmt.Sprintf("CREATE TABLE raw_table_%d (id int)", i)); err != nil {
			end()
			return nil, nil, err
		}
	}
	return r, end, nil
}

// make returns what makes one role: the n-th has its grant on the table that is given.
func (r *roles) make(table func(n int64) int64) func(context.Context, int) error {
	return func(ctx context.Context, i int) error {
		n := r.named.Add(1)
		for { // two grants on one table at once fail, and are made again
			_, err := r.admins[i].Exec(ctx, fmt.Sprintf("CREATE ROLE raw_%d LOGIN PASSWORD 'password %d' VALID UNTIL 'infinity'; GRANT SELECT ON raw_table_%d TO raw_%d", n, n, table(n), n),
				pgx.QueryExecModeSimpleProtocol)
			if err == nil || !strings.Contains(err.Error(), "tuple concurrently updated") {
				return err
			}
		}
	}
}

// leases compares the complete lease, from the agent's request to the login, with a role and its grant alone, by the same server. The grants of one
// moment are on one table, as those of a tool that gives logins for it are; that views does not read it, because thousands of grants are searched
// at every statement of whoever is no superuser. The next table comes when they fill the first one's row. Beside it, without a target, the
// grants of one moment on many tables, which get less into each other's way.
func (b *bench) leases(ctx context.Context, d *database) error {
	r, end, err := d.roles(ctx)
	if err != nil {
		return err
	}
	defer end()
	one, spread := r.make(func(n int64) int64 { return n / rolesOnOne % roleTables }), r.make(func(n int64) int64 { return n % roleTables })
	lease := func(ctx context.Context, i int) error {
		_, err := d.lease(ctx, &d.holders[i%dbAgents])
		return err
	}
	for _, n := range []int{1, dbAgents, dbAtOnce} {
		var rates [3][]float64
		var half []float64
		for range b.rounds {
			for side, f := range []func(context.Context, int) error{lease, one, spread} {
				rate, p50, err := repeated(ctx, n, b.round, f)
				if err != nil {
					return err
				}
				if rates[side] = append(rates[side], rate); side == 0 {
					half = append(half, ms(p50))
				}
			}
		}
		ours := figure(median(rates[0])) + "/s"
		b.table.add(row{what: fmt.Sprintf("database lease, decided, recorded and minted; %d at once", n), ours: ours,
			theirs: "CREATE ROLE … PASSWORD, GRANT: " + figure(median(rates[1])) + "/s", got: median(rates[0]) / median(rates[1]), want: 5, least: true, unit: "×"})
		if n == 1 {
			b.table.add(row{what: "database lease, p50", ours: figure(median(half)) + " ms", got: median(half), want: 5, unit: "ms"})
			continue
		}
		b.table.add(row{what: fmt.Sprintf("the same, each role's grant on another of %d tables; %d at once", roleTables, n), ours: ours,
			theirs: "CREATE ROLE … PASSWORD, GRANT: " + figure(median(rates[2])) + "/s", got: median(rates[0]) / median(rates[2]), unit: "×"})
	}
	return nil
}

func (d *database) login(ctx context.Context, l dbLease) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(d.pg.Admin("bench"))
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.User, cfg.Password = "127.0.0.1", l.Credential["user"], l.Password
	return pgx.ConnectConfig(ctx, cfg)
}

// sessions measures from the call that revokes until an open session, which asks without pause, sees nothing.
func (b *bench) sessions(ctx context.Context, d *database) error {
	var took []time.Duration
	for range 20 * b.rounds {
		l, err := d.lease(ctx, &d.holders[0])
		if err != nil {
			return err
		}
		conn, err := d.login(ctx, l)
		if err != nil {
			return err
		}
		sees := func() bool {
			var n int
			err := conn.QueryRow(ctx, "SELECT count(*) FROM remit.accounts WHERE aid = 7").Scan(&n)
			return err == nil && n == 1
		}
		if !sees() {
			return errors.New("a lease sees nothing of its own")
		}
		began, ended := time.Now(), make(chan error, 1)
		go func() {
			ended <- d.installation.admin.Post(ctx, "/v1/grants/"+string(l.Grant)+"/revoke", api.Reasoned{Reason: "bench"}, nil)
		}()
		for sees() {
		}
		took = append(took, time.Since(began))
		_ = conn.Close(ctx)
		if err := <-ended; err != nil {
			return err
		}
	}
	slices.Sort(took)
	b.table.add(row{what: "open session sees nothing after revocation, p99", ours: figure(ms(quantile(took, 0.5))) + " ms p50, " + figure(ms(quantile(took, 0.99))) + " ms p99",
		got: ms(quantile(took, 0.99)), want: 50, unit: "ms"})
	return nil
}

// floors are views that hold less than a lease's, by what they leave out: what part of its price is whose.
var floors = map[string]string{
	"a view that holds nothing":                                   "floor.nothing AS SELECT aid, bid, abalance FROM public.pgbench_accounts",
	"a barrier of constants and the clock, without a lease's row": "floor.constant WITH (security_barrier) AS SELECT aid, bid, abalance FROM public.pgbench_accounts WHERE bid = 1 AND clock_timestamp() < '2100-01-01'",
}

// views compares pgbench's select-only script on the table, as its owner, with the same through a lease's view and through the floors, in turn.
func (b *bench) views(ctx context.Context, d *database) error {
	l, err := d.lease(ctx, &d.holders[0])
	if err != nil {
		return err
	}
	const ours = "a lease's view"
	from := map[string]string{"": "pgbench_accounts", ours: "remit.accounts"}
	for what, view := range floors {
		if _, err := d.admin.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS floor; CREATE VIEW "+view, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		from[what], _, _ = strings.Cut(view, " ")
	}
	for _, protocol := range []string{"simple", "prepared"} {
		rates := map[string][]float64{}
		for range b.rounds {
			for what, table := range from {
				user := "postgres"
				if what == ours {
					user = l.Credential["user"]
				}
				r, err := b.selects(ctx, d, protocol, table, user, l.Password)
				if err != nil {
					return err
				}
				rates[what] = append(rates[what], r)
			}
		}
		table := median(rates[""])
		for _, what := range slices.Sorted(maps.Keys(from)) {
			r := row{what: "one row by its key, " + protocol + " protocol, through " + what, ours: figure(median(rates[what])) + "/s", theirs: "the table, pgbench -S: " + figure(table) + "/s",
				got: 100 * (1 - median(rates[what])/table), unit: "% slower"}
			if what == ours {
				r.want = 15
			}
			if what != "" {
				b.table.add(r)
			}
		}
	}
	return nil
}

// selects runs pgbench's select-only script on a table or view, and returns its transactions a second.
func (b *bench) selects(ctx context.Context, d *database, protocol, from, user, password string) (float64, error) {
	file := filepath.Join(d.pg.Dir, strings.ReplaceAll(from, ".", "_")+".sql")
	if err := os.WriteFile(file, []byte("\\set aid random(1, 100000)\nSELECT abalance FROM "+from+" WHERE aid = :aid;\n"), 0o644); err != nil { //nolint:gosec // pgbench's user reads it
		return 0, err
	}
	return tps(d.pg.Command(ctx, "pgbench", []string{"PGPASSWORD=" + password}, "-n", "-M", protocol, "-c", "4", "-j", "2", "-T", fmt.Sprint(max(1, int(2*b.round.Seconds()))),
		"-f", file, "-h", d.pg.Dir, "-p", fmt.Sprint(d.pg.Port), "-U", user, "bench"))
}

func tps(c *exec.Cmd) (r float64, err error) {
	out, err := c.CombinedOutput()
	if i := strings.Index(string(out), "tps = "); err == nil && i >= 0 {
		_, err = fmt.Sscanf(string(out)[i:], "tps = %f", &r)
	}
	if err != nil || r == 0 {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	return r, nil
}
