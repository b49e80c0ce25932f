// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/credential/postgres"
	"remit/internal/gateway/admin"
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
	return b, nil
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
