// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/credential/postgres"
	"remit/internal/durable"
	"remit/internal/gateway/admin"
	pglog "remit/internal/gateway/postgres"
)

// postgresTarget is a target of type postgres: the driver's keys, and how Remit proves itself.
type postgresTarget struct {
	postgres.Config `yaml:",inline"`
	// Password is the password of the broker's role. Left out: the server knows Remit by its user (peer).
	Password config.SecretRef `yaml:"password"`
}

func newPostgres(o config.Object, d deps) (b built, err error) {
	var cfg postgresTarget
	if err := o.Decode(&cfg); err != nil {
		return b, err
	}
	cfg.Config.Now = d.now
	if !cfg.Password.IsZero() {
		if cfg.Config.Password, err = cfg.Password.Resolve(); err != nil {
			return b, err
		}
	}
	driver, err := postgres.New(cfg.Config)
	if err != nil {
		return b, err
	}
	b.driver, b.client, b.setup = driver, driver.Client(), driver.Setup()
	b.keeps = []string{"mask", "limits.rows"}
	if cfg.Log != "" {
		b.log, err = d.server.newLog(o.Name, &cfg.Config)
	}
	return b, err
}

// newLog reads a target's own log. Its position is kept in a file: acts are recorded before it moves on.
func (s *Server) newLog(target string, cfg *postgres.Config) (*pglog.Log, error) {
	file := s.path("log-" + target + ".json")
	return pglog.New(pglog.Config{Target: target, Path: cfg.Log, Installation: cfg.Installation, Database: cfg.Database, Lease: s.store.Lease, Now: s.now,
		Acts: lateActs{s}, Save: func(b []byte) error { return durable.Replace(file, b, 0o600) },
		Load: func() ([]byte, error) {
			b, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return b, err
		}})
}

// lateActs is the line, which is built after the first configuration.
type lateActs struct{ s *Server }

// Executed implements gateway/postgres.Acts.
func (l lateActs) Executed(ctx context.Context, acts []remit.Outcome) error {
	return l.s.authorizer.Executed(ctx, acts)
}

// readLogs reads the logs of all targets, one after another, until ctx ends. A log that cannot be read is tried again; doctor says so.
func (s *Server) readLogs(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	failed := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for name, l := range s.rev.Load().logs {
			text := ""
			if err := l.Read(ctx); err != nil && ctx.Err() == nil {
				text = err.Error()
			}
			if text != failed[name] && text != "" {
				s.log.Warn("a target's log cannot be read; it is tried again", "target", name, "err", text)
			}
			failed[name] = text
		}
	}
}

// opSetup answers what an administrator runs at a target.
func (s *Server) opSetup(_ context.Context, c admin.Call) (any, error) {
	name := c.Path("target")
	rev := s.rev.Load()
	if _, ok := rev.set.Targets[name]; !ok {
		return nil, notFound("target", name)
	}
	if rev.setups[name] == "" {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "target " + name + " has no set-up that Remit writes",
			Hint: "for a cluster, deploy/kubernetes has the manifests"}
	}
	return api.Setup{Text: rev.setups[name]}, nil
}
