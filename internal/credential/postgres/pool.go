// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pool keeps idle connections of the broker. It has no goroutine; connections of a driver that is not used any more are closed
// when it is collected.
type pool struct {
	cfg   *pgx.ConnConfig
	slots chan struct{}
	idle  chan *pgx.Conn
}

func newPool(cfg *pgx.ConnConfig, size int) *pool {
	return &pool{cfg: cfg, slots: make(chan struct{}, size), idle: make(chan *pgx.Conn, size)}
}

// do calls f with a connection. One that broke is not kept; if it was an idle one, which a restart of the server breaks
// without a word, f is called once more with a fresh one, in time: f must be safe to repeat.
func (p *pool) do(ctx context.Context, f func(*pgx.Conn) error) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return fmt.Errorf("all %d connections to the database are busy: %w", cap(p.slots), ctx.Err())
	}
	for {
		conn, fresh, err := p.take(ctx)
		if err != nil {
			return err
		}
		err = f(conn)
		if !conn.IsClosed() {
			p.idle <- conn // there is room: it has as many places as there are slots
			return err
		}
		if fresh || ctx.Err() != nil {
			return err
		}
	}
}

func (p *pool) take(ctx context.Context) (conn *pgx.Conn, fresh bool, err error) {
	for {
		select {
		case conn = <-p.idle:
			if !conn.IsClosed() {
				return conn, false, nil
			}
		default:
			conn, err = pgx.ConnectConfig(ctx, p.cfg)
			return conn, true, err
		}
	}
}

// exec runs one statement that returns nothing.
func (p *pool) exec(ctx context.Context, timeout time.Duration, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return p.do(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, sql, args...)
		return err
	})
}

// state is the SQLSTATE of what the server answered, empty if it did not.
func state(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
