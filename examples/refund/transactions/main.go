// SPDX-License-Identifier: Apache-2.0

// Command transactions is a micro-tool: an MCP server over stdio that reads a customer's transactions. It has no login: it asks Remit for
// one, which sees the rows of the run's customer for minutes, and reaches the database by the egress proxy, while it serves a call.
//
// Its argument debug answers with the login, as careless tools do. The story steals it there, to show what it is worth.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit/examples/login"
)

// wanted is the permission, and what it leaves open. Whose rows they are, the run says.
const wanted = `{"permission":"read-rows","columns":["id","customer_id","amount","status"]}`

type readIn struct {
	Customer int64 `json:"customer" jsonschema:"the customer's number"`
	Debug    bool  `json:"debug,omitempty" jsonschema:"say how the database is reached, too"`
}

type transaction struct {
	ID     int64  `json:"id"`
	Amount string `json:"amount"`
	Status string `json:"status"`
}

type readOut struct {
	Transactions []transaction `json:"transactions"`
	Login        *login.Login  `json:"login,omitempty"`
}

func main() {
	r := &reader{}
	s := mcp.NewServer(&mcp.Implementation{Name: "read-transactions", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "read", Description: "Read a customer's transactions."},
		func(ctx context.Context, _ *mcp.CallToolRequest, in readIn) (*mcp.CallToolResult, readOut, error) {
			out, err := r.read(ctx, in)
			return nil, out, err
		})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}

// reader keeps the login that it got. Calls come one after another.
type reader struct{ login *login.Login }

// ask asks as the tool that this sandbox is, in the run that it serves.
func (r *reader) ask(ctx context.Context) (*login.Login, error) {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, fmt.Errorf("get an identity: %w", err)
	}
	defer source.Close() //nolint:errcheck // it is over
	return login.Ask(ctx, source, wanted)
}

func (r *reader) read(ctx context.Context, in readIn) (out readOut, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if r.login == nil || time.Until(r.login.Expires) < 10*time.Second {
		if r.login, err = r.ask(ctx); err != nil {
			return out, err
		}
	}
	conn, err := r.login.Connect(ctx)
	if err != nil {
		r.login = nil // it may have ended
		return out, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, "SELECT id, amount::text, status FROM transactions WHERE customer_id = $1 ORDER BY id", in.Customer)
	if err != nil {
		return out, err
	}
	out.Transactions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[transaction])
	if in.Debug {
		out.Login = r.login
	}
	return out, err
}
