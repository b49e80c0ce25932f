// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
)

//go:embed check.sql
var checkText string

const leastVersion = 150000

// Check implements credential.Checker: the server is recent enough, its clock is ours, the set-up is there, was run since the
// target's views last changed, and nothing of it was changed by hand; Remit's own role is no more than the broker; and nothing
// that everybody has in the database would let a lease past its view.
func (d *Driver) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	return unavailableOrNil(d.ends.do(ctx, func(c *pgx.Conn) error {
		if err := d.checkServer(ctx, c); err != nil {
			return err
		}
		if err := d.checkSetup(ctx, c); err != nil {
			return err
		}
		rows, err := c.Query(ctx, checkText)
		if err != nil {
			return err
		}
		problems, err := pgx.CollectRows(rows, pgx.RowTo[string])
		//remit:guard S22 TestUnfitDatabase
		if err == nil && len(problems) > 0 {
			err = unfit("docs/postgres.md says what to do about each", "%s", strings.Join(problems, "; "))
		}
		return err
	}))
}

func unavailableOrNil(err error) error {
	if err == nil {
		return nil
	}
	return unavailable("answer", "", err)
}

func unfit(hint, format string, args ...any) error {
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "postgres: " + fmt.Sprintf(format, args...), Hint: hint}
}

func (d *Driver) checkServer(ctx context.Context, c *pgx.Conn) error {
	var version int
	var at time.Time
	before := d.cfg.Now()
	if err := c.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, clock_timestamp()").Scan(&version, &at); err != nil {
		return err
	}
	if version < leastVersion {
		return unfit("upgrade the server", "PostgreSQL %d is too old: 15 or later", version/10000)
	}
	//remit:guard S13 TestUnfitDatabase
	if after := d.cfg.Now(); at.Before(before.Add(-clockSkew)) || at.After(after.Add(clockSkew)) {
		return unfit("let both follow the same time servers: expiry is by the database's clock", "the server's clock differs by %s", at.Sub(after).Round(time.Millisecond))
	}
	return nil
}

// checkSetup compares the set-up that was run with this driver's, and what stands with what was run.
func (d *Driver) checkSetup(ctx context.Context, c *pgx.Conn) error {
	again := "run the set-up as a superuser: remit doctor TARGET --setup | psql"
	var digest string
	var intact bool
	err := c.QueryRow(ctx, "SELECT i.digest, i.functions = ("+functionsQuery+") FROM remit.installed i").Scan(&digest, &intact)
	switch code := state(err); {
	case errors.Is(err, pgx.ErrNoRows) || code == "42P01" || code == "3F000" || code == "42501":
		return unfit(again, "the set-up was not run in database %s, or not for installation %s", d.cfg.Database, d.cfg.Installation)
	case err != nil:
		return err
	//remit:guard S22 TestUnfitDatabase
	case digest != d.digest:
		return unfit(again, "the set-up was last run for other views, or by another release")
	//remit:guard S22 TestUnfitDatabase
	case !intact:
		return unfit(again, "a function in schema remit is missing or was changed")
	}
	var changed []string
	err = c.QueryRow(ctx, "SELECT coalesce(array_agg(d.name::text ORDER BY d.name), '{}') FROM remit.declared d WHERE remit.fingerprint(d.name) IS DISTINCT FROM d.fingerprint").Scan(&changed)
	//remit:guard S22 TestUnfitDatabase
	if err == nil && len(changed) > 0 {
		err = unfit(again, "changed or missing since the set-up, or over a table that was renamed or changed: view %s", strings.Join(changed, ", "))
	}
	return err
}
