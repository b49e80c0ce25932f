// SPDX-License-Identifier: Apache-2.0

// Command agent is the mail agent, without a model: it does what each line of standard input orders and writes what came of it as lines of
// JSON. "tools" lists the tools that it is shown, "TOOL JSON" calls one, "LOGIN JSON" asks Remit for a login at a database and keeps a session
// there, "SQL STATEMENT" is a statement in that session, "IDENTITY" asks for a new certificate, "TOKEN"
// shows the run token, "HOLD TOKEN" puts another one in its place. What fails is told, and it goes on: it is
// somebody else's by then.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit/examples/login"
	"remit/examples/orchestrator"
)

func main() {
	ctx := context.Background()
	o, err := orchestrator.New(ctx, "mail")
	if err != nil {
		log.Fatal(err)
	}
	defer o.Close() //nolint:errcheck // it is over
	a := &agent{Orchestrator: o}
	if err := o.Orders(ctx, os.Stdin, a.order); err != nil {
		log.Fatal(err)
	}
}

type agent struct {
	*orchestrator.Orchestrator
	session *pgx.Conn
	token   *os.File // that it shows instead of its own
}

func (a *agent) order(ctx context.Context, order string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	what, rest, _ := strings.Cut(order, " ")
	switch what {
	case "tools":
		return a.mcp(ctx, what, a.List)
	case "LOGIN":
		return a.tell(what, func() (string, error) { return a.login(ctx, rest) })
	case "SQL":
		return a.tell(what, func() (string, error) { return a.query(ctx, rest) })
	case "TOKEN":
		return a.tell(what, func() (string, error) {
			b, err := os.ReadFile(os.Getenv("REMIT_RUN_TOKEN_FILE"))
			return string(b), err
		})
	case "HOLD":
		return a.tell(what, func() (string, error) { return "", a.hold(rest) })
	case "IDENTITY":
		return a.tell(what, func() (string, error) { return identity(ctx) })
	}
	return a.mcp(ctx, what, func(ctx context.Context) error {
		_, err := a.Call(ctx, false, what, json.RawMessage(rest))
		return err
	})
}

// mcp does something over MCP; that it cannot is what came of it.
func (a *agent) mcp(ctx context.Context, what string, do func(context.Context) error) error {
	if err := a.Connected(ctx, do); err != nil {
		return a.Tell(orchestrator.Step{Tool: what, Failed: true, Text: err.Error()})
	}
	return nil
}

func (a *agent) tell(what string, do func() (string, error)) error {
	text, err := do()
	if err != nil {
		text = err.Error()
	}
	return a.Tell(orchestrator.Step{Tool: what, Failed: err != nil, Text: text})
}

// login gets a login and keeps a session. It answers with the login, as careless agents do: the story uses it elsewhere, too.
func (a *agent) login(ctx context.Context, details string) (string, error) {
	l, err := login.Ask(ctx, a.Source(), details)
	if err != nil {
		return "", err
	}
	if a.session != nil {
		_ = a.session.Close(ctx)
	}
	if a.session, err = l.Connect(ctx); err != nil {
		return "", err
	}
	b, err := json.Marshal(l)
	return string(b), err
}

func (a *agent) query(ctx context.Context, sql string) (string, error) {
	if a.session == nil {
		return "", fmt.Errorf("there is no session")
	}
	rows, err := a.session.Query(ctx, sql)
	if err != nil {
		return "", err
	}
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		v, err := row.Values()
		return fmt.Sprint(v...), err
	})
	return strings.Join(got, "\n"), err
}

// identity asks the Workload API, as at its start.
func identity(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	svid, err := workloadapi.FetchX509SVID(ctx)
	if err != nil {
		return "", err
	}
	return svid.ID.String(), nil
}

// hold has the process show another run token from now on.
func (a *agent) hold(token string) error {
	f, err := os.CreateTemp("/dev/shm", "token-") // in memory, and gone with the name
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // nothing depends on it
	a.token = f
	if _, err := f.WriteString(token); err != nil {
		return err
	}
	return os.Setenv("REMIT_RUN_TOKEN_FILE", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}
