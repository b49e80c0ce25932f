// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"time"

	"remit"
	"remit/internal/authorizer"
	"remit/internal/telemetry"
)

// telemetryEvery is how often metrics are sent.
const telemetryEvery = 15 * time.Second

func (s *Server) openTelemetry(ctx context.Context) error {
	c := s.cfg.Telemetry
	if c == nil {
		return nil
	}
	cfg := telemetry.Config{URL: c.URL, OneIn: c.OneIn, Every: telemetryEvery, Figures: s.figures, Started: s.started, Version: s.version, TrustDomain: s.td.Name(), Log: s.log}
	var err error
	if !c.Token.IsZero() {
		if cfg.Token, err = c.Token.Resolve(); err != nil {
			return fmt.Errorf("telemetry: token: %w", err)
		}
	}
	if cfg.Client, err = providerClient(c.CA); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	s.telemetry, err = telemetry.New(ctx, cfg)
	return err
}

// sendTelemetry sends until ctx ends.
func (s *Server) sendTelemetry(ctx context.Context) error {
	if s.telemetry == nil {
		<-ctx.Done()
		return nil
	}
	return s.telemetry.Run(ctx)
}

// traced lets the parts of the line say how long they took. Only a server that has a collector has them around its parts.
func (s *Server) traced(cfg *authorizer.Config) {
	if s.telemetry == nil {
		return
	}
	policy := cfg.Policy
	cfg.Policy = func() authorizer.Policy { return tracedPolicy{policy()} }
	cfg.Evidence, cfg.Record, cfg.Broker = tracedEvidence{cfg.Evidence}, tracedRecord{cfg.Record}, tracedBroker{cfg.Broker}
}

type tracedPolicy struct{ authorizer.Policy }

// Judge implements authorizer.Policy.
func (p tracedPolicy) Judge(ctx context.Context, req *remit.Request, run *remit.Run, m *remit.Match, found []remit.Found) remit.Judgement {
	ctx, span := telemetry.Part(ctx, "policy")
	defer span.End(false)
	return p.Policy.Judge(ctx, req, run, m, found)
}

type tracedEvidence struct{ authorizer.Evidence }

// Collect implements authorizer.Evidence.
func (e tracedEvidence) Collect(ctx context.Context, needs []remit.Need, req *remit.Request) []remit.Found {
	ctx, span := telemetry.Part(ctx, "evidence")
	defer span.End(false)
	span.SetNumber("remit.evidence.needs", uint64(len(needs)))
	return e.Evidence.Collect(ctx, needs, req)
}

// Fresh implements authorizer.Evidence.
func (e tracedEvidence) Fresh(ctx context.Context, found []remit.Found) ([]remit.Found, bool) {
	ctx, span := telemetry.Part(ctx, "evidence.again")
	defer span.End(false)
	return e.Evidence.Fresh(ctx, found)
}

type tracedRecord struct{ authorizer.Record }

// Commit implements authorizer.Record.
func (r tracedRecord) Commit(ctx context.Context, c remit.Change) (receipt remit.Receipt, err error) {
	ctx, span := telemetry.Part(ctx, "record")
	defer func() { span.End(err != nil) }()
	return r.Record.Commit(ctx, c)
}

type tracedBroker struct{ authorizer.Broker }

// Mint implements authorizer.Broker.
func (b tracedBroker) Mint(ctx context.Context, g remit.Grant, l remit.Lease, require []remit.Precondition) (_ remit.Grant, _ remit.Credential, err error) {
	ctx, span := telemetry.Part(ctx, "mint")
	defer func() { span.End(err != nil) }()
	return b.Broker.Mint(ctx, g, l, require)
}

// say ends a request's span with its answer: names, numbers and reasons, as they stand in clear in the ledger.
func (s *Server) say(span telemetry.Span, d *remit.Decision, grant remit.GrantID, failed bool) {
	if span.Wanted() {
		workflow, stage := d.Permission.Workflow, d.Permission.Stage
		if r, ok := s.store.Run(d.Run); ok && workflow == "" {
			workflow, stage = r.Workflow, r.Stage
		}
		span.Set("remit.agent", string(d.Agent))
		span.Set("remit.run", string(d.Run))
		span.Set("remit.workflow", workflow)
		span.Set("remit.stage", stage)
		span.Set("remit.permission", d.Permission.Name)
		span.Set("remit.action", d.Action)
		span.Set("remit.target", d.Target)
		span.Set("remit.effect", d.Effect.String())
		span.Set("remit.decision", string(d.ID))
		span.Set("remit.grant", string(grant))
		span.Set("remit.via", d.Via)
		if len(d.Reasons) > 0 {
			span.Set("remit.reason", string(d.Reasons[0].Code))
		}
		if d.Receipt != nil {
			span.SetNumber("remit.ledger.entry", d.Receipt.Seq)
		}
	}
	span.End(failed)
}
