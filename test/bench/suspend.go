// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/api"
	"remit/internal/testpostgres"
	"remit/internal/tool"
)

const (
	liveTargets = `kind: Target
name: up
type: http
url: %q
private: true
---
kind: Target
name: bench-db
type: postgres
server: "127.0.0.1:%d"
database: bench
installation: bench
password: {file: %s}
views: [{name: accounts, table: public.accounts, columns: [aid, bid], rows: {bid: integer}}]
`
	liveFlow = `---
kind: Workflow
name: live
parameters:
  app:   {type: name}
  image: {type: image}
start: {by: [operator/bench], expires: 2h}
stages:
- name: work
  expires: 1h
  end: {by: [operator/bench]}
  may:
  - {name: apply, who: agent/deploy, action: kubernetes.apply, target: production-cluster, ttl: 5m,
     where: {namespace: production, kind: Deployment, name: $app, image: $image}}
  - {name: read, who: agent/deploy, action: postgres.select, target: bench-db, where: {table: public.accounts, columns: [aid, bid], rows: {bid: 1}}}
  - {name: ask, who: agent/deploy, action: mcp.call, target: kernel/ask, where: {url: {any: true}, n: {any: true}}}
  - {name: out, who: tool/kernel, under: ask, action: http.get, target: up, where: {path: /x}}
`
)

// live is everything that one suspension ends at once: a credential in use at an API server, a statement that runs in a session of a
// database, an MCP session's open stream, and a tool in a sandbox that reads an answer which does not end.
type live struct {
	*cluster
	pg     *testpostgres.Server
	client *http.Client
	up     *httptest.Server
	opened chan struct{}
	closed chan time.Time
}

// endings are the things that end, in the order of the table.
var endings = []string{"Kubernetes credential", "PostgreSQL session", "MCP stream", "tool's call", "tool's open connection"}

// suspension measures from the call that suspends until each of them has ended.
func (b *bench) suspension(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("sandboxes are measured as root")
	}
	x, err := b.live(ctx)
	if errors.Is(err, testpostgres.ErrMissing) {
		fmt.Fprintln(os.Stderr, "suspension: left out:", err)
		return nil
	}
	if err != nil {
		return err
	}
	took := map[string][]time.Duration{}
	for i := range 4*b.rounds + 1 {
		one, err := x.round(ctx)
		if err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		if i == 0 {
			continue // the first run's sandbox comes from nothing
		}
		slowest := time.Duration(0)
		for what, d := range one {
			took[what], slowest = append(took[what], d), max(slowest, d)
		}
		took["slowest"] = append(took["slowest"], slowest)
	}
	for _, what := range endings {
		slices.Sort(took[what])
		b.table.add(row{what: "suspension, everything live: " + what, ours: fmt.Sprintf("p50 %s ms, p99 %s ms", figure(ms(quantile(took[what], 0.5))), figure(ms(quantile(took[what], 0.99))))})
	}
	all := took["slowest"]
	slices.Sort(all)
	b.table.add(row{what: fmt.Sprintf("suspension, the slowest of them, p99 of %d", len(all)), ours: figure(ms(quantile(all, 0.99))) + " ms", got: ms(quantile(all, 0.99)), want: 1000, unit: "ms"})
	b.table.add(row{what: "suspension, the slowest of them, p50", ours: figure(ms(quantile(all, 0.5))) + " ms", got: ms(quantile(all, 0.5)), want: 100, unit: "ms"})
	return nil
}

func (b *bench) live(ctx context.Context) (*live, error) {
	pg, err := testpostgres.Start(ctx, testpostgres.Config{})
	if err != nil {
		return nil, err
	}
	b.stops = append(b.stops, func() { _ = pg.Stop() })
	x := &live{pg: pg, opened: make(chan struct{}, 1), closed: make(chan time.Time, 1)}
	x.up = httptest.NewServer(http.HandlerFunc(x.endless))
	b.stops = append(b.stops, func() { x.up.CloseClientConnections(); x.up.Close() })
	if x.cluster, err = b.startCluster(ctx, 1, "serviceaccount"); err != nil {
		return nil, err
	}
	folder, password := b.path("live-tool"), b.path("live-password")
	err = errors.Join(os.Mkdir(folder, 0o755), os.WriteFile(filepath.Join(folder, "tool.py"), []byte(boxedTool), 0o644), //nolint:gosec // no secrets
		os.WriteFile(password, []byte("of the broker"), 0o600))
	if err != nil {
		return nil, err
	}
	digest, err := tool.Digest(folder)
	if err != nil {
		return nil, err
	}
	files := fmt.Sprintf(liveTargets, x.up.URL, pg.Port, password) + fmt.Sprintf(boxedServer, "kernel", folder, digest) + liveFlow
	if err := os.WriteFile(filepath.Join(x.dir, "config", "live.yaml"), []byte(files), 0o644); err != nil { //nolint:gosec // no secrets
		return nil, err
	}
	if err := x.admin.Post(ctx, "/v1/apply", struct{}{}, nil); err != nil {
		return nil, err
	}
	if x.client, err = x.cluster.client(); err != nil {
		return nil, err
	}
	x.client.Timeout = 0 // streams do not end
	return x, x.rows(ctx)
}

// endless answers with a byte now and then until its client is gone.
func (x *live) endless(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	x.opened <- struct{}{}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.Context().Done():
			x.closed <- time.Now()
			return
		case <-tick.C:
			_, _ = io.WriteString(w, ".")
			_ = rc.Flush()
		}
	}
}

// rows makes the table, and does what doctor says.
func (x *live) rows(ctx context.Context) error {
	root, err := pgx.Connect(ctx, x.pg.Admin("postgres"))
	if err != nil {
		return err
	}
	defer root.Close(ctx) //nolint:errcheck // a connection of a moment
	if _, err := root.Exec(ctx, "CREATE DATABASE bench"); err != nil {
		return err
	}
	admin, err := pgx.Connect(ctx, x.pg.Admin("bench"))
	if err != nil {
		return err
	}
	defer admin.Close(ctx) //nolint:errcheck // a connection of a moment
	var setup api.Setup
	if err := x.admin.Get(ctx, "/v1/doctor/bench-db/setup", nil, &setup); err != nil {
		return err
	}
	for _, sql := range []string{"CREATE TABLE accounts AS SELECT i AS aid, 1 AS bid FROM generate_series(1, 10) i", setup.Text, "ALTER ROLE remit_bench_broker PASSWORD 'of the broker'"} {
		if _, err := admin.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("set up the database: %w", err)
		}
	}
	return nil
}

// ended is what a watcher saw, of one thing.
type ended struct {
	what string
	at   time.Time
	err  error
}

// round brings everything to life, suspends, waits until all has ended, and gives the agent its powers back.
func (x *live) round(ctx context.Context) (map[string]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var err error
	if _, x.token, err = x.run(ctx, "live", clusterAgent, map[string]string{"app": "shop", "image": imageOf(0)}); err != nil {
		return nil, err
	}
	over := make(chan ended, len(endings))
	for _, watch := range []func(context.Context, chan<- ended) error{x.credential, x.session, x.stream, x.call} {
		if err := watch(ctx, over); err != nil {
			return nil, err
		}
	}
	time.Sleep(100 * time.Millisecond) // all of it is in use
	began, out := time.Now(), map[string]time.Duration{}
	var said api.Suspended
	suspended := make(chan error, 1)
	go func() {
		suspended <- x.admin.Post(ctx, "/v1/agents/"+clusterAgent+"/suspend", api.Reasoned{Reason: "bench"}, &said)
	}()
	for range endings {
		select {
		case e := <-over:
			if e.err != nil {
				return nil, fmt.Errorf("%s: %w", e.what, e.err)
			}
			if e.at.Before(began) {
				return nil, fmt.Errorf("%s had ended before", e.what)
			}
			out[e.what] = e.at.Sub(began)
		case <-time.After(15 * time.Second):
			return nil, fmt.Errorf("not everything has ended after 15 s: %v", out)
		}
	}
	if err := <-suspended; err != nil || len(said.Failed) > 0 {
		return nil, fmt.Errorf("%w %v", err, said.Failed)
	}
	if _, err := x.grant(ctx, x.client); err == nil || !strings.Contains(err.Error(), string(remit.ReasonSuspended)) {
		return nil, fmt.Errorf("a decision after it: %w", err)
	}
	return out, x.admin.Post(ctx, "/v1/agents/"+clusterAgent+"/reinstate", api.Reasoned{Reason: "bench"}, nil)
}

// credential asks the API server without pause, until it refuses.
func (x *live) credential(ctx context.Context, over chan<- ended) error {
	g, err := x.grant(ctx, x.client)
	if err != nil {
		return err
	}
	client := trusts(x.servers[0])
	if err := until(ctx, client, x.servers[0], g.Token, http.StatusNotFound, 1); err != nil {
		return err
	}
	go func() {
		defer client.CloseIdleConnections()
		err := until(ctx, client, x.servers[0], g.Token, http.StatusForbidden, 1)
		over <- ended{"Kubernetes credential", time.Now(), err}
	}()
	return nil
}

// session runs a statement that does not end by itself.
func (x *live) session(ctx context.Context, over chan<- ended) error {
	d := &database{installation: x.installation, pg: x.pg}
	l, err := d.lease(ctx, &holder{x.client, url.Values{"grant_type": {"client_credentials"}, "client_id": {agentID(clusterAgent)},
		"authorization_details": {`[{"permission":"read","columns":["aid","bid"],"rows":{"bid":1}}]`}}.Encode(), x.token})
	if err != nil {
		return err
	}
	conn, err := d.login(ctx, l)
	if err != nil {
		return err
	}
	var n int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM remit.accounts").Scan(&n); err != nil || n != 10 {
		return fmt.Errorf("the lease sees %d rows: %w", n, err)
	}
	go func() {
		_, err := conn.Exec(ctx, "SELECT pg_sleep(120)")
		over <- ended{"PostgreSQL session", time.Now(), not(err)}
		_ = conn.Close(context.WithoutCancel(ctx))
	}()
	return nil
}

// not is an error where there was none: what should have been ended went on to its end.
func not(err error) error {
	if err == nil {
		return errors.New("it was not ended")
	}
	return nil
}

// stream opens an MCP session, and hears its stream.
func (x *live) stream(ctx context.Context, over chan<- ended) error {
	send := func(method, session, body string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, "https://"+x.address+"/mcp/kernel", strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		req.Header.Set("Txn-Token", x.token)
		if session != "" {
			req.Header.Set("Mcp-Session-Id", session)
			req.Header.Set("Accept", "text/event-stream")
		}
		return x.client.Do(req)
	}
	res, err := send(http.MethodPost, "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`)
	if err != nil {
		return err
	}
	text, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	session := res.Header.Get("Mcp-Session-Id")
	if session == "" {
		return fmt.Errorf("no MCP session: %d %.300s", res.StatusCode, text)
	}
	if res, err = send(http.MethodGet, session, ""); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return fmt.Errorf("no stream: %d", res.StatusCode)
	}
	go func() {
		_, _ = io.Copy(io.Discard, res.Body)
		over <- ended{"MCP stream", time.Now(), nil}
		_ = res.Body.Close()
	}()
	return nil
}

// call has the tool read from up without end; its call ends, and so does the connection that up sees.
func (x *live) call(ctx context.Context, over chan<- ended) error {
	raw := toolPost(x.address, "/mcp/kernel", x.token, "ask", fmt.Sprintf(`{"url":"%s/x","n":1}`, x.up.URL))
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return err
	}
	req = req.WithContext(ctx)
	req.RequestURI, req.URL.Scheme, req.URL.Host = "", "https", x.address
	early := make(chan error, 1)
	go func() {
		status, body, err := do(x.client, req)
		if err == nil && bytes.Contains(body, []byte(`"isError":false`)) {
			err = fmt.Errorf("the call came to its end: %d %.300s", status, body)
		} else {
			early <- fmt.Errorf("the call ended: %d %.300s %w", status, body, err)
			err = nil
		}
		over <- ended{"tool's call", time.Now(), err}
	}()
	select {
	case <-x.opened:
	case err := <-early:
		return err
	case <-time.After(30 * time.Second):
		return errors.New("the tool does not reach what it may")
	}
	go func() { over <- ended{"tool's open connection", <-x.closed, nil} }()
	return nil
}
