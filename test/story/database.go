// SPDX-License-Identifier: Apache-2.0

package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"remit/internal/testpostgres"
)

// Database is a PostgreSQL server that is spoken to over TLS alone.
type Database struct {
	*testpostgres.Server
	Host, Name string
	CA         string    // file
	Admin      *pgx.Conn // of the database, as its administrator
}

// Login is what a lease is to its holder.
type Login struct {
	Host, Port, Database, User, CA, Password string
	Expires                                  time.Time
}

// StartDatabase starts a server with an empty database, until the story ends.
func (s *Story) StartDatabase(ctx context.Context, host, name string) (*Database, error) {
	cert, key, err := CertificatePEM(host)
	if err != nil {
		return nil, err
	}
	dir := s.Path("db")
	errs := []error{os.Mkdir(dir, 0o755)}
	for name, b := range map[string][]byte{"ca.pem": cert, "server.crt": cert, "server.key": key} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), b, 0o600), os.Chown(filepath.Join(dir, name), 65534, 65534))
	}
	if err := errors.Join(append(errs, os.Chmod(filepath.Join(dir, "ca.pem"), 0o644))...); err != nil {
		return nil, err
	}
	db := &Database{Host: host, Name: name, CA: filepath.Join(dir, "ca.pem")}
	db.Server, err = testpostgres.Start(ctx, testpostgres.Config{HBA: "local all postgres trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
		Settings: map[string]string{"ssl": "on", "ssl_cert_file": filepath.Join(dir, "server.crt"), "ssl_key_file": filepath.Join(dir, "server.key"), "log_timezone": "UTC"}})
	if err != nil {
		return nil, err
	}
	s.Stop(func() { _ = db.Stop() })
	root, err := pgx.Connect(ctx, db.Server.Admin("postgres"))
	if err != nil {
		return nil, err
	}
	defer root.Close(ctx) //nolint:errcheck // it is over
	if _, err := root.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return nil, err
	}
	db.Admin, err = pgx.Connect(ctx, db.Server.Admin(name))
	return db, err
}

// Prepare does what docs/postgres.md tells an administrator to do for a target of the installation main1.
func (s *Story) Prepare(ctx context.Context, db *Database, target, password string) error {
	r := s.Remit(ctx, "doctor", target, "--setup")
	if r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	for _, sql := range []string{r.Out, "ALTER ROLE remit_main1_broker PASSWORD '" + password + "'"} {
		if _, err := db.Admin.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("run the set-up: %w", err)
		}
	}
	if r := s.Remit(ctx, "doctor", target); r.Code != 0 || strings.Contains(r.Out, "FAIL") {
		return fmt.Errorf("%s", r)
	}
	return nil
}

// Connect logs in, past Remit.
func (db *Database) Connect(ctx context.Context, l *Login) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s dbname=%s user=%s sslmode=verify-full sslrootcert=%s", l.Host, l.Port, l.Database, l.User, db.CA))
	if err != nil {
		return nil, err
	}
	cfg.Password = l.Password
	return pgx.ConnectConfig(ctx, cfg)
}

// PSQL runs a statement with a login, past Remit: psql itself, as anybody on the network could.
func (db *Database) PSQL(ctx context.Context, l *Login, sql string) Result {
	r := Result{Argv: []string{"psql", "-c", sql}}
	cmd := db.Command(ctx, "psql", []string{"PGPASSWORD=" + l.Password, "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + db.CA},
		"-X", "-q", "-A", "-t", "-h", l.Host, "-p", l.Port, "-d", l.Database, "-U", l.User, "-v", "ON_ERROR_STOP=1", "-c", sql)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	if cmd.Run() != nil {
		r.Code = 1
	}
	r.Out, r.Errs, r.Took = strings.TrimSpace(out.String()), strings.TrimSpace(errs.String()), time.Since(began)
	return r
}

// Left waits until no role of a lease and no row of its scope is left at the database.
func (db *Database) Left(ctx context.Context) error {
	left := -1
	for end := time.Now().Add(10 * time.Second); left != 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err := db.Admin.QueryRow(ctx, "SELECT (SELECT count(*) FROM pg_roles WHERE rolname ~ '^remit_main1_[a-z2-7]{26}$') + (SELECT count(*) FROM remit.scope)").Scan(&left); err != nil {
			return err
		}
	}
	if left != 0 {
		return fmt.Errorf("%d roles and rows of scope are left at the database", left)
	}
	return nil
}

// SecretsOf copies the database's own log to where Search looks.
func (s *Story) SecretsOf(db *Database) error {
	log, err := os.ReadFile(db.Log())
	if err != nil {
		return err
	}
	return os.WriteFile(s.Path("postgres.json"), log, 0o600)
}
