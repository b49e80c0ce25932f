// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"remit"
	"remit/internal/config"
	"remit/internal/gateway"
	"remit/internal/gateway/authzen"
	"remit/internal/gateway/token"
	"remit/internal/telemetry"
)

// limitsOf are the quotas before the line (S35), as remit.yaml states them.
func limitsOf(q config.Quota) gateway.Limits {
	return gateway.Limits{Rate: float64(q.Rate), Burst: float64(q.Burst), Concurrent: int(q.Concurrent), Bytes: float64(q.Bytes)}
}

// httpsHandler is everything that is served on the HTTPS address.
func (s *Server) httpsHandler() (http.Handler, error) {
	agents := s.agents
	base := s.baseURL()
	tokens, err := token.New(token.Config{Issuer: base, Line: line{s}, Authenticator: s.auth, RunTokens: s,
		Directory: s.registry, Grants: grants{s}, Location: s.location, Actions: s.actions, Access: s, Quota: agents, Log: s.log, Now: s.now})
	if err != nil {
		return nil, err
	}
	pdp, err := authzen.New(authzen.Config{Base: base, Line: line{s}, Authenticator: s.auth, RunTokens: s, Directory: s.registry, Holds: holds{s}, Agents: agents,
		Points: gateway.NewQuota(limitsOf(s.cfg.Quotas.Points)), Log: s.log, Now: s.now})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	s.mcp.Register(mux)
	mux.Handle("/oauth2/", tokens)
	mux.Handle("/.well-known/oauth-authorization-server", tokens)
	mux.Handle("/access/v1/", pdp)
	mux.Handle("/.well-known/authzen-configuration", pdp)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	s.agentRoutes(mux)
	s.remoteManagement(mux)
	s.approvalRoutes(mux)
	s.signalRoutes(mux)
	s.metricsRoute(mux)
	mux.HandleFunc("POST /kubernetes/{target}/{hook}", s.webhook)
	if err := s.identityEndpoints(mux); err != nil || s.telemetry == nil {
		return mux, err
	}
	return telemetry.Handler(mux), nil
}

// webhook passes a call of a target's own API server on; which targets have one changes with the revision.
func (s *Server) webhook(w http.ResponseWriter, r *http.Request) {
	h, ok := s.rev.Load().webhooks[r.PathValue("target")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.StripPrefix("/kubernetes/"+r.PathValue("target"), h).ServeHTTP(w, r)
}

func (s *Server) baseURL() string { return s.cfg.Issuer }

// serverOf serves a handler on the HTTPS address, or on the socket of a sandbox.
func (s *Server) serverOf(handler http.Handler, context func(context.Context, net.Conn) context.Context) *http.Server {
	return &http.Server{
		Handler: handler, TLSConfig: s.tlsConfig(), ConnContext: context,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// HTTP/1.1 only: enforcement points keep connections, and one stream a connection costs half of what HTTP/2 does.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
}

// serveHTTPS answers until ctx ends, then lets requests in flight finish for up to 10 s.
func (s *Server) serveHTTPS(ctx context.Context, l net.Listener) error {
	handler, err := s.front()
	if err != nil {
		return err
	}
	srv := s.serverOf(handler, gateway.Connection)
	defer s.mcp.Close()
	stop := context.AfterFunc(ctx, func() {
		s.mcp.Close() // streams that no request ends
		sctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = srv.Shutdown(sctx)
	})
	defer stop()
	if err := srv.ServeTLS(&limited{Listener: l, most: mostConnections()}, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve https: %w", err)
	}
	return nil
}

// line lets gateways enter the authorizer.
type line struct{ s *Server }

// Decide implements gateway.Line.
func (l line) Decide(ctx context.Context, req *remit.Request) (remit.Decision, error) {
	l.s.watchClock()
	l.complete(req)
	l.s.refuseUnfit(req)
	req.Sandbox = l.s.tierOf(req)
	req.Keeps = l.s.keeps(req.Keeps)
	ctx, span := l.s.telemetry.Request(ctx, "decide", req.Trace)
	d, err := l.s.authorizer.Decide(ctx, req)
	l.s.say(span, &d, "", err != nil)
	l.s.notify(&d)
	l.s.sample(&d, "")
	return d, err
}

// Grant implements gateway.Line.
func (l line) Grant(ctx context.Context, req *remit.Request) (gateway.Granted, error) {
	l.s.watchClock()
	l.complete(req)
	if t, ok := l.s.rev.Load().targets[req.Target]; ok {
		req.Keeps = slices.Concat(req.Keeps, t.Keeps)
	}
	req.Sandbox = l.s.tierOf(req)
	req.Keeps = l.s.keeps(req.Keeps)
	ctx, span := l.s.telemetry.Request(ctx, "grant", req.Trace)
	d, g, c, err := l.s.authorizer.Grant(ctx, req)
	l.s.say(span, &d, g.ID, err != nil)
	l.s.notify(&d)
	l.s.sample(&d, g.ID)
	return gateway.Granted{Decision: d, Grant: g, Credential: c}, err
}

// complete fills in action and target of a request that names only a permission. What comes out is matched like any other
// request, so this can spare typing and nothing else.
func (l line) complete(req *remit.Request) {
	if req.Permission == "" || req.Action != "" && req.Target != "" {
		return
	}
	r, ok := l.s.store.Run(req.Run)
	if !ok {
		return
	}
	w, ok := l.s.rev.Load().workflow(r.Workflow)
	if !ok {
		return
	}
	for _, st := range w.Stages {
		for _, p := range st.May {
			if st.Name != r.Stage || p.Name != req.Permission || p.Who != req.Agent {
				continue
			}
			req.Action, req.Target = cmp.Or(req.Action, p.Action), cmp.Or(req.Target, p.Target)
			return
		}
	}
}

// grants is what the token endpoint needs for revocation.
type grants struct{ s *Server }

// Grant implements token.Grants.
func (g grants) Grant(id remit.GrantID) (remit.Grant, bool) { return g.s.store.Grant(id) }

// GrantOf implements token.Grants.
func (g grants) GrantOf(credential string) (remit.GrantID, bool) {
	l, ok := g.s.store.LeaseByCredential(credential)
	return l.Grant, ok
}

// Revoke implements token.Grants.
func (g grants) Revoke(ctx context.Context, id remit.GrantID, why, by string) error {
	return g.s.broker.Revoke(ctx, id, why, by)
}

// location maps a resource URI to a target: the URL of its API.
func (s *Server) location(uri string) (string, bool) {
	for name, client := range s.rev.Load().clients {
		if client["server"] != "" && client["server"] == uri {
			return name, true
		}
	}
	return "", false
}

func (s *Server) actions() []string {
	seen := map[string]bool{}
	var out []string
	for _, w := range s.rev.Load().workflows {
		for _, st := range w.Stages {
			for _, p := range st.May {
				if !seen[p.Action] {
					seen[p.Action] = true
					out = append(out, p.Action)
				}
			}
		}
	}
	return out
}
