// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/durable"
	"remit/internal/identity"
	"remit/internal/identity/federation"
	"remit/internal/identity/issuer"
	"remit/internal/identity/workloadapi"
	"remit/internal/run"
)

// keyFiles are the authority and the key rings; each signs one thing (S7).
type keyFiles struct {
	authority *issuer.Authority
	grants    *issuer.GrantIssuer
	runs      *issuer.Keys
}

// longestRun bounds a run token's life; runs are shorter.
const longestRun = 7 * 24 * time.Hour

func openKeyFiles(dir string, keeper keeper, td spiffeid.TrustDomain, iss, grantIss string, on func(step, key string), log *slog.Logger, now func() time.Time) (k keyFiles, err error) {
	k.authority, err = issuer.New(issuer.Config{TrustDomain: td, Dir: dir, Keeper: keeper, Issuer: iss, OnEvent: on, Log: log, Now: now})
	if err != nil {
		return k, err
	}
	k.grants, err = issuer.NewGrantIssuer(grantIss, issuer.KeysConfig{Name: "grant", Dir: dir, Keeper: keeper, OnEvent: on, Log: log, Now: now})
	if err != nil {
		return k, err
	}
	k.runs, err = issuer.OpenKeys(issuer.KeysConfig{Name: "run-token", Type: run.TokenType, Dir: dir, Keeper: keeper, Life: 4 * longestRun, MaxTTL: longestRun,
		OnEvent: on, Log: log, Now: now})
	return k, err
}

// createIdentities founds the authority, so that serve finds it, and writes its roots for clients that know no SPIFFE.
func createIdentities(dir string, td spiffeid.TrustDomain, keeper keeper) error {
	const later = "https://localhost" // the issuers' names are no part of the files
	k, err := openKeyFiles(filepath.Join(dir, dirKeys), keeper, td, later, later+"/grants", nil, nil, nil)
	if err != nil {
		return err
	}
	return writeBundle(filepath.Join(dir, fileBundle), k.authority)
}

// writeBundle writes the trust domain's roots in PEM: what an API server or curl verifies our endpoints with.
func writeBundle(path string, a *issuer.Authority) error {
	b, err := a.Bundle().X509Bundle().Marshal()
	if err != nil {
		return fmt.Errorf("encode the bundle: %w", err)
	}
	if err := durable.Replace(path, b, 0o644); err != nil { // public
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

// identities is who signs and who serves identities.
type identities struct {
	keyFiles
	cert     *issuer.ServerCertificate
	bundles  *federation.Bundles // ours, and those of other trust domains
	api      *workloadapi.Server
	tokens   *run.Tokens
	events   chan authorityStep
	launches launches
}

type authorityStep struct {
	Step string `json:"step"`
	Key  string `json:"key"`
}

func (s *Server) openIdentities(ctx context.Context) (err error) {
	i := &identities{events: make(chan authorityStep, 256)}
	on := func(step, key string) { // it must not wait: the ledger has it when runIdentities comes by
		select {
		case i.events <- authorityStep{step, key}:
		default:
			s.log.Error("an authority step is not on record", "step", step, "key", key)
		}
	}
	i.keyFiles, err = openKeyFiles(s.path(dirKeys), s.keeper, s.td, s.cfg.Issuer, s.cfg.GrantIssuer, on, s.log, s.now)
	if err != nil {
		return err
	}
	var names []string
	var ips []net.IP
	for _, n := range s.cfg.Names {
		if ip := net.ParseIP(n); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, n)
		}
	}
	if i.cert, err = i.authority.ServerCertificate(names, ips); err != nil {
		return err
	}
	if i.bundles, err = s.federate(i.authority); err != nil {
		return err
	}
	s.auth, err = identity.New(identity.Config{TrustDomain: s.td, Bundles: i.bundles, Vouched: s.vouched, Records: s.store, Names: s.registry, Store: s.store,
		Audience: s.baseURL(), Now: s.now})
	if err != nil {
		return err
	}
	i.tokens, err = run.NewTokens(run.TokenConfig{Issuer: s.baseURL(), TrustDomain: s.td, Signer: runKeys{i.runs}})
	if err != nil {
		return err
	}
	i.api, err = s.newWorkloadAPI(i)
	s.ids = i
	return err
}

// runKeys lets run tokens be signed with their own ring and nothing else.
type runKeys struct{ keys *issuer.Keys }

// Sign implements run.Signer; the ring's type is the only one.
func (k runKeys) Sign(claims any, typ string) (string, error) {
	if typ != run.TokenType {
		return "", fmt.Errorf("the run-token keys do not sign %q", typ)
	}
	return k.keys.Sign(claims)
}

// Keys implements run.Signer.
func (k runKeys) Keys() (set jose.JSONWebKeySet) {
	for id, key := range k.keys.Public() {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: id, Algorithm: string(jose.ES256), Use: "sig"})
	}
	return set
}

// RunToken implements gateway.RunTokens. What a launch was given ends with it.
func (s *Server) RunToken(token string, p remit.Principal, at time.Time) (remit.RunID, error) {
	if p.Launch != "" {
		if l, ok := s.store.Launch(p.Launch); !ok || !l.Ended.IsZero() {
			return "", &remit.Error{Code: remit.CodeUnauthenticated, Msg: "the launch that this identity is of has ended", Hint: "launch again: remit exec"}
		}
	}
	return s.ids.tokens.RunToken(token, p, at)
}

func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, GetCertificate: s.ids.cert.GetCertificate,
		// A certificate is asked for and verified by the gateway, which alone knows whether one is needed.
		ClientAuth: tls.RequestClientCert,
	}
}

// identityEndpoints serves the bundle and the keys that others verify with. None of it is secret.
func (s *Server) identityEndpoints(mux *http.ServeMux) error {
	bundle, err := s.ids.authority.BundleHandler()
	if err != nil {
		return err
	}
	oidc, err := s.ids.authority.Discovery()
	if err != nil {
		return err
	}
	mux.Handle("GET /bundle", bundle)
	for iss, h := range map[string]http.Handler{s.cfg.Issuer: oidc, s.cfg.GrantIssuer: s.ids.grants.Discovery()} {
		u, err := url.Parse(iss)
		if err != nil {
			return err
		}
		mux.Handle("GET "+u.Path+"/.well-known/openid-configuration", h)
		mux.Handle("GET "+u.Path+"/keys", h)
	}
	return nil
}

// runIdentities turns the key rings, serves the Workload API, which listens already, and records what the authority did.
func (s *Server) runIdentities(g *group) {
	g.run("authority", s.ids.authority.Run)
	g.run("federation", s.ids.bundles.Run)
	g.run("grant keys", s.ids.grants.Run)
	g.run("run-token keys", s.ids.runs.Run)
	g.run("workload api", func(ctx context.Context) error {
		<-ctx.Done()
		s.ids.api.Close()
		return nil
	})
	g.run("bundle file", func(ctx context.Context) error {
		for {
			changed := s.ids.authority.Changed()
			if err := writeBundle(s.path(fileBundle), s.ids.authority); err != nil {
				s.log.Error("the bundle file is not renewed", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
		}
	})
	g.run("authority record", func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case step := <-s.ids.events:
				body, _ := json.Marshal(step) // two strings
				if err := s.record(ctx, remit.Event{At: s.now(), Kind: remit.EventAuthority, By: "remit", Data: body}); err != nil {
					s.log.Error("an authority step is not on record", "step", step.Step, "key", step.Key, "err", err)
				}
			}
		}
	})
}
