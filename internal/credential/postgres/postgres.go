// SPDX-License-Identifier: Apache-2.0

// Package postgres mints logins at a PostgreSQL database that reach the decided rows and columns of one table, through one view,
// and see nothing more within milliseconds of their end, also in sessions that are open.
//
// Authority is one row for each lease in a table that only Remit's functions write; every view joins it by session_user at
// every statement, and the clock at every row. A role that lacks the row can log in and see nothing. Set-up (Setup) is an
// administrator's; the package itself has no rights on tables, makes no roles but through four functions of the set-up, reads
// no data, and mints nothing while a view is not as it was set up. It starts goroutines only inside a call and waits for
// them. doc.md is for operators.
package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/credential"
)

// Config is a target of type postgres.
type Config struct {
	// Server is HOST:PORT, or FOLDER:PORT for a Unix socket. Any other host than loopback is spoken to over TLS, and its certificate
	// must be for HOST. Required.
	Server string `yaml:"server"`
	// Agents is the same as agents reach it. Left out: as Remit does.
	Agents string `yaml:"agents"`
	// Database that leases are about. Required.
	Database string `yaml:"database"`
	// CA is a PEM file with the roots that the server's certificate must lead to; with it, loopback is spoken to over TLS, too. Left
	// out: the host's roots.
	CA string `yaml:"ca"`
	// Installation tells the databases of one server, and the Remits that share it, apart: 1 to 12 characters a-z, 0-9. It stands in
	// the names of all roles. Required.
	Installation string `yaml:"installation"`
	// Views are what leases can be about. Required.
	Views []View `yaml:"views"`
	// Connections is how many sessions one lease may have at once. Left out: 2; at most 100.
	Connections int `yaml:"connections"`
	// StatementTimeout is how long a statement may take, and how long a transaction may wait for its next one. A holder can lift it in
	// its own sessions; their end with the lease it cannot. Left out: 30s; at most 10m.
	StatementTimeout time.Duration `yaml:"statement_timeout"`
	// Iterations of the password's hash. The password is 192 random bits, to which stretching adds nothing, and each iteration costs the
	// server's time at every mint. Left out: 1. Some clients (Java's) refuse fewer than 4096.
	Iterations int `yaml:"iterations"`
	// Log is the server's log in JSON (log_destination = jsonlog), which Remit reads on the same host: then each lease's role logs all of
	// its statements, and they come back into the ledger. Left out: acts under leases are not known.
	Log string `yaml:"log"`
	// Timeout of one request to the server. Left out: 5s; at most 30s.
	Timeout time.Duration `yaml:"timeout"`
	// Password of the broker's role. Empty: the server knows Remit by its user (peer).
	Password remit.Secret `yaml:"-"`
	// Now is the clock; default time.Now.
	Now func() time.Time `yaml:"-"`
	// Dial, if set, connects to the server: to delay requests in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) `yaml:"-"`
}

// Driver is the credential driver of one database. It is safe for concurrent use and keeps no state beside idle connections.
type Driver struct {
	cfg           Config
	broker        *pgx.ConnConfig
	agents        address
	ca            string // PEM
	setup, digest string
	mints, ends   *pool // ending never waits for minting
	gather        gather
}

var (
	_ credential.Driver  = (*Driver)(nil)
	_ credential.Lister  = (*Driver)(nil)
	_ credential.Checker = (*Driver)(nil)
	_ credential.Planner = (*Driver)(nil)
	_ credential.Prober  = (*Driver)(nil)
)

const (
	maxTTL     = time.Hour
	clockSkew  = 2 * time.Second // how far the server's clock may be from ours: expiry is by the server's
	endConns   = 4
	minSCRAM   = 1
	maxSCRAM   = 1_000_000
	schemaName = "remit"
)

var (
	installationPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]{1,12}$`) })
	databasePattern     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$-]{0,62}$`) })
)

func invalid(hint, format string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: "postgres: " + fmt.Sprintf(format, args...), Hint: hint}
}

// New checks cfg and reads the certificate file. It sends nothing: Check tells whether the database is fit.
func New(cfg Config) (*Driver, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	server, err := parseAddress(cfg.Server)
	if err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, agents: server}
	if cfg.Agents != "" {
		if d.agents, err = parseAddress(cfg.Agents); err != nil {
			return nil, err
		}
	}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "postgres: ca cannot be read", Cause: err}
		}
		d.ca = string(pem)
	}
	if d.broker, err = d.connection(server, cfg.prefix()+"broker", cfg.Password); err != nil {
		return nil, err
	}
	if d.setup, d.digest, err = cfg.makeSetup(cfg.Database); err != nil {
		return nil, err
	}
	d.mints, d.ends = newPool(d.broker, maxFlights), newPool(d.broker, endConns)
	d.gather.send = d.sendMints
	return d, nil
}

func (c *Config) complete() error {
	if c.Now == nil {
		c.Now = time.Now
	}
	for _, def := range []struct {
		field *int
		value int
	}{{&c.Connections, 2}, {&c.Iterations, minSCRAM}} {
		if *def.field == 0 {
			*def.field = def.value
		}
	}
	if c.StatementTimeout == 0 {
		c.StatementTimeout = 30 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	switch {
	//remit:guard S17 TestInjectionThroughTheFile
	case !installationPattern().MatchString(c.Installation):
		return invalid("write 1 to 12 characters a-z and 0-9", "installation %.40q", c.Installation)
	case !databasePattern().MatchString(c.Database):
		return invalid("name the database", "database %.80q", c.Database)
	case c.Connections < 1 || c.Connections > 100:
		return invalid("write 1 to 100", "connections %d", c.Connections)
	case c.Iterations < minSCRAM || c.Iterations > maxSCRAM:
		return invalid("write 1 to 1000000", "iterations %d", c.Iterations)
	case c.StatementTimeout < time.Millisecond || c.StatementTimeout > 10*time.Minute:
		return invalid("write at most 10m", "statement_timeout %s", c.StatementTimeout)
	case c.Timeout < time.Millisecond || c.Timeout > 30*time.Second:
		return invalid("write at most 30s", "timeout %s", c.Timeout)
	case c.Log != "" && !filepath.IsAbs(c.Log):
		return invalid("write the whole path", "log %.150q", c.Log)
	case len(c.Views) == 0 || len(c.Views) > 200:
		return invalid("list what leases can be about", "%d views: 1 to 200 are possible", len(c.Views))
	}
	c.Views = slices.Clone(c.Views)
	names := map[string]bool{}
	for i := range c.Views {
		if err := c.Views[i].complete(); err != nil {
			return err
		}
		if names[c.Views[i].Name] {
			return invalid("each view has a name of its own", "view %s stands twice", c.Views[i].Name)
		}
		names[c.Views[i].Name] = true
	}
	return nil
}

// address is where the server is.
type address struct {
	host string // a folder for a Unix socket
	port uint16
}

// local reports whether no network lies between.
func (a address) local() bool {
	ip, err := netip.ParseAddr(a.host)
	return filepath.IsAbs(a.host) || a.host == "localhost" || err == nil && ip.IsLoopback()
}

func parseAddress(s string) (address, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 1 {
		return address{}, invalid("write HOST:PORT, or FOLDER:PORT for a Unix socket", "server %.150q", s)
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	host := strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]")
	if err != nil || port == 0 || strings.ContainsAny(host, " ,'\"\\@?\x00\n") {
		return address{}, invalid("write HOST:PORT, or FOLDER:PORT for a Unix socket", "server %.150q", s)
	}
	return address{host, uint16(port)}, nil
}

// encrypted says whether an address is spoken to over TLS.
func (d *Driver) encrypted(a address) bool {
	return d.ca != "" && !filepath.IsAbs(a.host) || !a.local()
}

// connection makes the configuration of a connection, from nothing but its arguments: no variable of the environment, no
// password file and no service file has a say.
func (d *Driver) connection(a address, user string, password remit.Secret) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig("sslmode=disable passfile=/dev/null host=127.0.0.1 user=x dbname=x")
	if err != nil {
		return nil, fmt.Errorf("make a connection: %w", err)
	}
	c.Host, c.Port, c.Database, c.User, c.Password = a.host, a.port, d.cfg.Database, user, password.Reveal()
	c.TLSConfig, c.Fallbacks, c.ConnectTimeout = nil, nil, d.cfg.Timeout
	c.RuntimeParams = map[string]string{"application_name": "remit"}
	c.KerberosSpn, c.KerberosSrvName = "", ""
	//remit:guard S17 TestServerMustProveItself
	if d.encrypted(a) {
		c.TLSConfig = &tls.Config{ServerName: a.host, MinVersion: tls.VersionTLS12}
		if d.ca != "" {
			c.TLSConfig.RootCAs = x509.NewCertPool()
			if !c.TLSConfig.RootCAs.AppendCertsFromPEM([]byte(d.ca)) {
				return nil, invalid("write a PEM file", "ca holds no certificate")
			}
		}
	}
	if d.cfg.Dial != nil {
		c.DialFunc = d.cfg.Dial
	}
	return c, nil
}

// Client returns what a client of the database needs to know and is no secret.
func (d *Driver) Client() map[string]string {
	out := map[string]string{"type": "postgres", "host": d.agents.host, "port": strconv.Itoa(int(d.agents.port)), "database": d.cfg.Database, "sslmode": "disable"}
	if d.encrypted(d.agents) {
		out["sslmode"], out["ca"] = "verify-full", d.ca
	}
	return out
}

// role is the login of a lease.
func (d *Driver) role(id remit.LeaseID) string { return d.cfg.prefix() + short(id) }

// short is the part of a lease's id that differs.
func short(id remit.LeaseID) string { return strings.TrimPrefix(string(id), "lease-") }

// unavailable keeps our own codes and says for everything else that the database did not do it.
func unavailable(what string, id remit.LeaseID, err error) error {
	if e, ok := errors.AsType[*remit.Error](err); ok {
		return e
	}
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "postgres: the database did not " + what, Cause: err,
		Hint: "remit doctor TARGET says what is wrong there", ID: string(id)}
}
