// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway"
	"remit/internal/gateway/admin"
	"remit/internal/gateway/login"
	"remit/internal/identity/federation"
)

// remotePrefix is where the management API stands on the HTTPS address.
const remotePrefix = "/admin"

// openPeople builds the login of people and of CI jobs, if the server's file has one, and the webhooks that tell people.
func (s *Server) openPeople() error {
	for _, a := range s.cfg.Announce {
		h, err := newWebhook(a)
		if err != nil {
			return err
		}
		s.webhooks = append(s.webhooks, h)
	}
	if s.cfg.People == nil && len(s.cfg.Jobs) == 0 {
		return nil
	}
	cfg := login.Config{Store: s.store, Log: s.log, Now: s.now,
		Local: func(n remit.Name) (string, bool) { o, ok := s.cfg.Local(n); return o.Subject, ok }}
	if p := s.cfg.People; p != nil {
		client, err := providerClient(p.CA)
		if err != nil {
			return fmt.Errorf("people: %w", err)
		}
		if !p.Secret.IsZero() {
			if cfg.Secret, err = p.Secret.Resolve(); err != nil {
				return fmt.Errorf("people: client_secret: %w", err)
			}
		}
		for _, r := range p.Roles {
			cfg.Rules = append(cfg.Rules, login.Rule(r))
		}
		cfg.Issuer, cfg.ClientID, cfg.Scopes, cfg.Name, cfg.Groups, cfg.Life, cfg.HTTP = p.Issuer, p.ClientID, p.Scopes, p.Name, p.Groups, p.Session, client
	}
	for _, j := range s.cfg.Jobs {
		client, err := providerClient(j.CA)
		if err != nil {
			return fmt.Errorf("jobs: %s: %w", j.Name, err)
		}
		issuer, err := federation.NewIssuer(j.Issuer, client, s.now)
		if err != nil {
			return fmt.Errorf("jobs: %s: %w", j.Name, err)
		}
		cfg.Jobs = append(cfg.Jobs, login.Job{Name: j.Name, Issuer: j.Issuer, Audience: j.Audience, Claims: j.Claims, Roles: j.Roles,
			Life: j.Session, Verify: issuer.Verify})
	}
	var err error
	s.login, err = login.New(cfg)
	return err
}

// providerClient asks the provider: by TLS, in bounded time, following no redirect.
func providerClient(ca string) (*http.Client, error) {
	roots, err := rootsOf(ca)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, TLSHandshakeTimeout: 5 * time.Second,
		ResponseHeaderTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10, Proxy: http.ProxyFromEnvironment}
	return &http.Client{Transport: t, Timeout: 15 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// remoteManagement serves the management API over HTTPS to people with a session.
func (s *Server) remoteManagement(mux *http.ServeMux) {
	if s.login == nil {
		return
	}
	s.login.Routes(mux, remotePrefix)
	quota := gateway.NewQuota(limitsOf(s.cfg.Quotas.People))
	mux.Handle(remotePrefix+"/v1/", http.StripPrefix(remotePrefix, s.management.Remote(s.login.Person, quota)))
}

func (s *Server) opLogout(ctx context.Context, c admin.Call) (any, error) {
	if c.Who.Method != remit.MethodSession {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "you are here by the admin socket: there is no session to end"}
	}
	return struct{}{}, s.login.End(ctx, remit.SessionID(c.Who.Credential), c.Who.String())
}

func (s *Server) opSessions(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	all := s.store.Sessions()
	slices.SortFunc(all, func(a, b remit.Session) int { return strings.Compare(string(a.ID), string(b.ID)) })
	var out []api.Session
	for _, r := range all {
		if string(r.ID) > after && len(out) < limit {
			out = append(out, api.Session{ID: r.ID, Person: r.Person, Subject: r.Subject, Started: r.Started, Expires: r.Expires, Ended: r.Ended})
		}
	}
	return listed(out, limit, func(r api.Session) string { return string(r.ID) }), nil
}

func (s *Server) opSessionEnd(ctx context.Context, c admin.Call) (any, error) {
	if s.login == nil {
		return nil, notFound("session", c.Path("id"))
	}
	return struct{}{}, s.login.End(ctx, remit.SessionID(c.Path("id")), c.Who.String())
}

func (s *Server) opPersonForget(ctx context.Context, c admin.Call) (any, error) {
	name, err := remit.ParseName("operator/" + c.Path("name"))
	if err != nil {
		return nil, err
	}
	if s.login == nil {
		return nil, notFound("person", string(name))
	}
	return struct{}{}, s.login.Forget(ctx, name)
}
