// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"remit"
	"remit/internal/broker"
	"remit/internal/config"
	"remit/internal/credential"
	"remit/internal/credential/external"
	"remit/internal/credential/kubernetes"
	"remit/internal/evidence"
	"remit/internal/evidence/attestation"
	"remit/internal/evidence/citoken"
	"remit/internal/evidence/registry"
	"remit/internal/evidence/ticket"
	"remit/internal/gateway/egress"
	kubegateway "remit/internal/gateway/kubernetes"
	pglog "remit/internal/gateway/postgres"
	"remit/internal/identity/federation"
	"remit/internal/store"
)

// The tables: a new driver is a line here and a folder there. Nothing registers itself.
var targetDrivers = map[string]func(o config.Object, d deps) (built, error){
	"kubernetes": newKubernetes,
	"external":   newExternal,
	"http":       newHTTP,
	"postgres":   newPostgres,
}

var evidenceSources = map[string]func(o config.Object, d deps) (evidence.Source, error){
	"scan":       newAttestation,
	"provenance": newAttestation,
	"ci":         newAttestation,
	"ci-token":   newCIToken,
	"ticket":     newTicket,
}

// deps is what drivers and sources are given beside their own configuration.
type deps struct {
	server *Server
	store  *store.Store
	images *registry.Registry
	grants kubernetes.Signer // the grant issuer
	issuer string            // its `iss`
	set    *config.Set
	now    func() time.Time
}

// built is what a target's table entry makes.
type built struct {
	driver   credential.Driver
	client   map[string]string // what its clients may know: server, ca, audience
	webhooks http.Handler      // what its own API server calls; nil: nothing
	// probe is what only doctor tries, beside the driver's own check: it says what it found; nil: nothing.
	probe  func(context.Context) (string, error)
	setup  string         // what an administrator runs there, as text; empty: nothing that Remit writes
	log    *pglog.Log     // the target's own log of what was executed; nil: none that Remit reads
	keeps  []string       // the kinds of obligations that the driver carries out, and limits.NAME for limits
	out    *egress.Target // where the egress proxy lets tools through to; nil: not there
	target broker.Target  // filled by newTarget
}

func newTarget(o config.Object, d deps) (built, error) {
	build, ok := targetDrivers[o.Type]
	if !ok {
		return built{}, o.Errorf("no such type of target: %q", o.Type)
	}
	b, err := build(o, d)
	if err != nil {
		return built{}, o.Errorf("%w", err)
	}
	b.target = broker.Target{Driver: b.driver, Production: o.Production, Keeps: b.keeps}
	b.target.Lister, _ = b.driver.(credential.Lister)
	b.target.Checker, _ = b.driver.(credential.Checker)
	b.target.Planner, _ = b.driver.(credential.Planner)
	b.target.Prober, _ = b.driver.(credential.Prober)
	return b, nil
}

func newSource(o config.Object, d deps) (evidence.Source, error) {
	build, ok := evidenceSources[o.Type]
	if !ok {
		return nil, o.Errorf("no such type of evidence source: %q", o.Type)
	}
	s, err := build(o, d)
	if err != nil {
		return nil, o.Errorf("%w", err)
	}
	return s, nil
}

// kubernetesTarget is a target of type kubernetes: the driver's keys, and how its API server proves itself to us.
type kubernetesTarget struct {
	kubernetes.Config `yaml:",inline"`
	// Webhook is the bearer token that the API server sends with audit events and access reviews. Left out: neither is taken.
	Webhook config.SecretRef `yaml:"webhook"`
}

func newKubernetes(o config.Object, d deps) (b built, err error) {
	var cfg kubernetesTarget
	if err := o.Decode(&cfg); err != nil {
		return b, err
	}
	cfg.Issuer, cfg.Signer, cfg.Now = d.issuer, d.grants, d.now
	driver, err := kubernetes.New(cfg.Config)
	if err != nil {
		return b, err
	}
	b.driver, b.client = driver, driver.Client()
	doctor := "spiffe://" + d.server.td.Name() + "/remit/doctor"
	if cfg.Webhook.IsZero() {
		b.probe = d.server.distrusting(&cfg.Config, driver.Accepts, kubernetesProbe(cfg.Mode, driver, nil, doctor, d.now))
		if cfg.Mode == kubernetes.ModeWebhook {
			return b, errors.New("mode webhook needs webhook: the token by which the API server proves itself")
		}
		return b, nil
	}
	token, err := cfg.Webhook.Resolve()
	if err != nil {
		return b, err
	}
	gw, err := kubegateway.New(kubegateway.Config{Target: o.Name, Installation: cfg.Installation, Token: token, Leases: liveLeases{d.server},
		Decides: cfg.Mode == kubernetes.ModeWebhook, Allowed: driver.Allowed, Acts: d.server.authorizer, Now: d.now})
	if err != nil {
		return b, err
	}
	b.webhooks = gw.Handler()
	b.probe = d.server.distrusting(&cfg.Config, driver.Accepts, kubernetesProbe(cfg.Mode, driver, gw, doctor, d.now))
	return b, nil
}

// liveLeases lets the webhook see a lease whose end has begun as ended, before it is on record.
type liveLeases struct{ s *Server }

// ByCredential implements gateway/kubernetes.Leases.
func (l liveLeases) ByCredential(id string) (remit.Lease, bool) {
	le, ok := l.s.store.LeaseByCredential(id)
	return l.s.seen(le), ok
}

// ByID implements gateway/kubernetes.Leases.
func (l liveLeases) ByID(id remit.LeaseID) (remit.Lease, bool) {
	le, ok := l.s.store.Lease(id)
	return l.s.seen(le), ok
}

func (s *Server) seen(l remit.Lease) remit.Lease {
	if _, live := s.broker.Live(l.ID); !live && l.State == remit.GrantActive {
		l.State = remit.GrantRevoking
	}
	return l
}

// newExternal is a target where somebody else enforces what Remit decides: an enforcement point that asks by AuthZEN.
func newExternal(o config.Object, _ deps) (built, error) {
	return built{driver: external.Driver{}}, o.Decode(&struct{}{})
}

// newHTTP is a server that tools reach through the egress proxy, which decides each request and injects the credential: nothing is minted.
func newHTTP(o config.Object, _ deps) (built, error) {
	var cfg egress.TargetConfig
	if err := o.Decode(&cfg); err != nil {
		return built{}, err
	}
	t, err := egress.NewTarget(o.Name, cfg, func(r egress.SecretRef) (remit.Secret, error) {
		return config.SecretRef{File: r.File, Env: r.Env}.Resolve()
	})
	if err != nil {
		return built{}, err
	}
	return built{driver: external.Driver{}, client: map[string]string{"server": t.Server()}, out: t}, nil
}

func newAttestation(o config.Object, d deps) (evidence.Source, error) {
	var cfg attestation.Config
	if err := o.Decode(&cfg); err != nil {
		return nil, err
	}
	if len(cfg.Kinds) == 0 { // a scanner vouches for scans, not for who built the image
		cfg.Kinds = []string{o.Type}
	}
	return attestation.New(cfg, attestation.Deps{Name: o.Name, Statements: d.store, Platforms: d.images.Platforms, Acting: d.acting})
}

func newCIToken(o config.Object, d deps) (evidence.Source, error) {
	var cfg citoken.Config
	if err := o.Decode(&cfg); err != nil {
		return nil, err
	}
	client, err := providerClient(cfg.CA)
	if err != nil {
		return nil, err
	}
	issuer, err := federation.NewIssuer(cfg.Issuer, client, d.now)
	if err != nil {
		return nil, err
	}
	return citoken.New(cfg, citoken.Deps{Name: o.Name, Statements: d.store, Verify: issuer.Verify})
}

func newTicket(o config.Object, d deps) (evidence.Source, error) {
	var cfg ticket.Config
	if err := o.Decode(&cfg); err != nil {
		return nil, err
	}
	secret := func(r ticket.SecretRef) (remit.Secret, error) {
		return config.SecretRef{File: r.File, Env: r.Env}.Resolve()
	}
	return ticket.New(cfg, ticket.Deps{Name: o.Name, Secret: secret, Parties: d.parties, Claims: claims{d.store, d.now}, Now: d.now})
}

// acting returns who has a part in a run: its starter and everybody in its stages.
func (d deps) acting(id remit.RunID) []remit.Name {
	r, ok := d.store.Run(id)
	if starting, is := d.server.starting.Load(id); is {
		r, ok = starting.(remit.Run), true
	}
	if !ok {
		return nil
	}
	names := []remit.Name{r.Starter}
	for i := range d.set.Workflows {
		if w := &d.set.Workflows[i]; w.Name == r.Workflow {
			for _, st := range w.Stages {
				for _, p := range st.May {
					names = append(names, p.Who)
				}
			}
		}
	}
	return names
}

// parties are those of acting and the agents' owners: who must have no hand in the run's ticket (S15).
func (d deps) parties(req *remit.Request) ([]string, error) {
	names := d.acting(req.Run)
	if len(names) == 0 {
		return nil, errors.New("the run is unknown")
	}
	var out []string
	for _, n := range names {
		out = append(out, string(n))
		if _, person, ok := strings.Cut(string(n), "operator/"); ok {
			out = append(out, person)
		}
		if owner := d.set.Agents[n].Owner; owner != "" {
			out = append(out, owner)
		}
	}
	return out, nil
}

// claims binds tickets to runs by single-use rows.
type claims struct {
	store *store.Store
	now   func() time.Time
}

// claimKept is how long a ticket stays bound to its run: longer than any change window.
const claimKept = 90 * 24 * time.Hour

// Claim implements ticket.Claims.
func (c claims) Claim(ctx context.Context, source, id string, run remit.RunID) (remit.RunID, error) {
	issuer := "ticket " + source
	if u, ok := c.store.Used(issuer, id); ok {
		return u.By, nil
	}
	row := remit.Used{Issuer: issuer, JTI: id, By: run, Until: c.now().Add(claimKept)}
	_, err := c.store.Commit(ctx, remit.Change{Rows: []remit.Row{row}, Require: []remit.Precondition{{Key: row.EpochKey()}}})
	if u, ok := c.store.Used(issuer, id); ok && (err == nil || remit.CodeOf(err) == remit.CodeConflict) {
		return u.By, nil
	}
	return "", err
}
