// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"remit"
)

// attempt is one act of a trial: statements in a transaction that is rolled back, or a connection.
type attempt struct {
	act     string
	granted bool
	before  []string // must pass, and are part of the act
	sql     string
	args    []any
	// counts: the statement returns one number, and only more than zero is a pass: rows seen or changed.
	counts bool
	// affects: rows that the statement changed are a pass, none is a refusal.
	affects bool
	// leaks: the statement fails with a division by zero if it saw a row that it must not see.
	leaks bool
	// insertOther: a row is made up that gives the first key another value.
	insertOther bool
	// selfAlter: ALTER ROLE of the holder's own role.
	selfAlter string
	// database: connect to it instead.
	database string
}

const howRolledBack = "rolled back"

// Try implements credential.Prober.
func (d *Driver) Try(ctx context.Context, l remit.Lease, c remit.Credential) ([]remit.Trial, error) {
	s, err := d.plan(l)
	if err != nil {
		return nil, err
	}
	conn, err := d.asHolder(ctx, l, c.Secret, d.cfg.Database)
	if err != nil {
		return nil, fmt.Errorf("log in with the twin's credential: %w", err)
	}
	defer func() { closeConn(conn) }()
	var out []remit.Trial
	for _, a := range s.attempts(d) {
		out = append(out, d.try(ctx, conn, l, c, a))
		if !conn.IsClosed() {
			continue
		}
		if conn, err = d.asHolder(ctx, l, c.Secret, d.cfg.Database); err != nil {
			return nil, fmt.Errorf("log in again with the twin's credential: %w", err)
		}
	}
	_, notBounded := s.bounds(&d.cfg)
	for _, n := range notBounded {
		out = append(out, remit.Trial{Act: n, Outcome: remit.TrialNotTried, Detail: "not bounded by the grant"})
	}
	return out, nil
}

// asHolder logs in as the holder of a lease, from where Remit is.
func (d *Driver) asHolder(ctx context.Context, l remit.Lease, password remit.Secret, database string) (*pgx.Conn, error) {
	cfg := d.broker.Copy()
	cfg.User, cfg.Password, cfg.Database = d.role(l.ID), password.Reveal(), database
	cfg.StatementCacheCapacity, cfg.DescriptionCacheCapacity = 0, 0
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	return pgx.ConnectConfig(ctx, cfg)
}

func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

// try carries out one attempt and judges the answer.
func (d *Driver) try(ctx context.Context, conn *pgx.Conn, l remit.Lease, c remit.Credential, a attempt) remit.Trial {
	t := remit.Trial{Act: a.act, Granted: a.granted, How: howRolledBack, Outcome: remit.TrialNotTried}
	if a.database != "" {
		t.How = "login"
		other, err := d.asHolder(ctx, l, c.Secret, a.database)
		if err == nil {
			closeConn(other)
		}
		return judged(t, err, true)
	}
	if a.selfAlter != "" {
		a.sql = "ALTER ROLE " + quoteIdent(d.role(l.ID)) + " " + a.selfAlter
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadWrite})
	if err != nil {
		t.Detail = err.Error()
		return t
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, sql := range a.before {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return judged(t, err, false)
		}
	}
	if a.insertOther {
		if a.sql, err = otherRow(ctx, tx, l, &d.cfg); err != nil || a.sql == "" {
			t.Detail = "no row could be made up without an effect: " + cut(fmt.Sprint(err))
			return t
		}
	}
	n := int64(1)
	if a.counts {
		err = tx.QueryRow(ctx, a.sql, a.args...).Scan(&n)
	} else {
		var tag pgconn.CommandTag
		if tag, err = tx.Exec(ctx, a.sql, a.args...); a.affects {
			n = tag.RowsAffected()
		}
	}
	if a.leaks {
		return leaked(t, err)
	}
	return judged(t, err, n > 0)
}

// leaked: an expression that fails on rows of others did, or did not.
func leaked(t remit.Trial, err error) remit.Trial {
	switch {
	case err == nil:
		t.Outcome, t.Detail = remit.TrialRefused, "it met no such row"
	case state(err) == "22012":
		t.Outcome, t.Detail = remit.TrialPassed, cut(err.Error())
	default:
		t.Detail = cut(err.Error())
	}
	return t
}

// otherRow makes up an INSERT through the view with a value of the first key that the lease does not have. It is empty where
// inserting draws from a sequence, which no rollback undoes.
func otherRow(ctx context.Context, tx pgx.Tx, l remit.Lease, c *Config) (string, error) {
	s, err := c.parseScope(l.Action, l.Scope)
	if err != nil {
		return "", err
	}
	v := s.view
	var draws bool
	base := quoteIdent(v.schema()) + "." + quoteIdent(v.table())
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class r ON r.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
		LEFT JOIN pg_catalog.pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
		WHERE n.nspname = $1 AND r.relname = $2 AND a.attname <> ALL ($3) AND (a.attidentity <> '' OR pg_catalog.pg_get_expr(f.adbin, f.adrelid) LIKE '%nextval(%'))`,
		v.schema(), v.table(), v.Columns).Scan(&draws)
	if err != nil || draws {
		return "", errors.Join(err, errors.New(base+" draws from a sequence"))
	}
	schema, name := v.relation()
	values := make([]string, len(v.Columns))
	for i, column := range v.Columns {
		var typ string
		err := tx.QueryRow(ctx, `SELECT a.atttypid::regtype::text FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class r ON r.oid = a.attrelid
			JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace WHERE n.nspname = $3 AND r.relname = $1 AND a.attname = $2`, name, column, schema).Scan(&typ)
		if err != nil {
			return "", err
		}
		if values[i] = sample(typ); column == v.keys()[0] && slices.Contains(s.keys[0], strings.Trim(values[i], "'")) {
			values[i] = strings.NewReplacer("0", "1", "''", "'other'").Replace(values[i])
		}
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", s.onView(), quoteIdents(v.Columns), strings.Join(values, ", ")), nil
}

// sample is a value of a type, as good as any.
func sample(typ string) string {
	switch typ {
	case "bigint", "integer", "smallint", "numeric", "real", "double precision":
		return "0"
	case "text", "character varying", "character":
		return "''"
	case "uuid":
		return "'00000000-0000-0000-0000-000000000000'"
	case "boolean":
		return "false"
	case "date", "timestamp with time zone", "timestamp without time zone":
		return "'2000-01-01'"
	case "json", "jsonb":
		return "'{}'"
	}
	return "NULL"
}

// judged: an error by which the server says no is a refusal, and so is no row where rows were asked for; every other error shows
// nothing. What does not exist for the holder is refused as well: a name that cannot be resolved for want of rights looks so.
func judged(t remit.Trial, err error, some bool) remit.Trial {
	switch code := state(err); {
	case err == nil && some:
		t.Outcome = remit.TrialPassed
	case err == nil && t.Granted: // nothing is there to be read
		t.Detail = "no row"
	case err == nil:
		t.Outcome, t.Detail = remit.TrialRefused, "no row"
	case refusals[code]:
		t.Outcome, t.Detail = remit.TrialRefused, cut(err.Error())
	default:
		t.Detail = cut(err.Error())
	}
	return t
}

// refusals are the SQLSTATEs by which a server refuses for want of authority.
var refusals = map[string]bool{
	"42501": true, // insufficient privilege
	"44000": true, // with check option violation
	"28000": true, // invalid authorization
	"28P01": true, // invalid password
	"25006": true, // read-only transaction
	"0A000": true, // feature not supported: it is nobody's
	"0LP01": true, // invalid grant operation
}

// cut keeps a ledger entry of all trials small.
func cut(text string) string {
	const most = 300
	text = strings.ToValidUTF8(text, "")
	if len(text) > most {
		_, n := utf8.DecodeLastRuneInString(text[:most])
		return text[:most-n] + "…"
	}
	return text
}

// TryEnded implements credential.Prober.
func (d *Driver) TryEnded(ctx context.Context, l remit.Lease, c remit.Credential) remit.Trial {
	began := time.Now()
	t := remit.Trial{Act: "what was granted, after the end", How: "login", Outcome: remit.TrialNotTried}
	for {
		conn, err := d.asHolder(ctx, l, c.Secret, d.cfg.Database)
		switch {
		case err == nil:
			closeConn(conn)
			t.Outcome = remit.TrialPassed
		case refusals[state(err)]:
			t.Outcome, t.Detail = remit.TrialRefused, fmt.Sprintf("after %d ms: %s", time.Since(began).Milliseconds(), cut(err.Error()))
			return t
		}
		if ctx.Err() != nil {
			t.Detail = cut(fmt.Sprint(errors.Join(errors.New("still not refused"), err)))
			return t
		}
	}
}
