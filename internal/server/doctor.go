// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
)

// opDoctor checks the installation, or one target, and says what to mend.
func (s *Server) opDoctor(ctx context.Context, c admin.Call) (any, error) {
	if name := c.Path("target"); name != "" {
		if _, ok := s.target(name); !ok {
			return nil, notFound("target", name)
		}
		return []api.Check{s.checkTarget(ctx, name)}, nil
	}
	checks := []api.Check{s.checkKeys(), s.checkOwnUID(), s.checkClock(), s.checkLedger(), s.checkAudiences(), s.checkSigned(), s.checkCeiling(),
		s.checkApplied()}
	checks = append(checks, s.checkAttestation(), s.checkUIDs(), s.checkPeople(), s.checkApprovals(), s.checkTools(), s.checkWitnesses(), s.checkSignals())
	names := s.targetNames()
	slices.Sort(names)
	for _, name := range names {
		checks = append(checks, s.checkTarget(ctx, name))
	}
	return append([]api.Check{s.worth(checks)}, checks...), nil
}

func (s *Server) checkTarget(ctx context.Context, name string) api.Check {
	out := api.Check{Name: "target " + name, OK: true, Text: "nothing to check"}
	t, _ := s.target(name)
	if t.Checker == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := t.Checker.Check(ctx); err != nil {
		out.OK, out.Text = false, err.Error()
		out.Fix = "docs/" + s.rev.Load().set.Targets[name].Type + ".md says what an administrator applies; no grant is given until this is mended"
		if e, ok := errors.AsType[*remit.Error](err); ok && e.Hint != "" && e.ID == "" && remit.CodeOf(err) == remit.CodeUnavailable {
			out.Fix = strings.ReplaceAll(e.Hint, "TARGET", name)
		}
		return out
	}
	out.Text = "reachable, its guard objects are there and unchanged"
	probe := s.rev.Load().probes[name]
	if probe == nil {
		return out
	}
	text, err := probe(ctx)
	if err != nil {
		out.OK, out.Text, out.Fix = false, err.Error(), "docs/kubernetes.md shows how the API server is configured"
		if e, ok := errors.AsType[*remit.Error](err); ok && e.Hint != "" {
			out.Fix = e.Hint
		}
		return out
	}
	out.Text += "; " + text
	return out
}

// checkOwnUID is S3: an agent under the server's user could read its keys.
func (s *Server) checkOwnUID() api.Check {
	out := api.Check{Name: "server's user", OK: true, Text: fmt.Sprintf("uid %d; processes of that uid are not attested", os.Getuid())}
	switch {
	case s.cfg.AllowOwnUID:
		out.Warn, out.Text = true, "processes under the server's own user are attested (allow_own_uid)"
		out.Fix = "for trying things out only: such a process can read the server's keys"
	case os.Getuid() == 0:
		out.Warn, out.Text = true, "the server runs as root"
		out.Fix = "give it a user of its own; launching agents under their own uid needs CAP_SETUID in remit exec, not in the server"
	}
	return out
}

func (s *Server) checkLedger() api.Check {
	out := api.Check{Name: "ledger", OK: true}
	cp, err := s.ledger.Checkpoint()
	last := s.store.LastSeq()
	switch {
	case err != nil:
		out.OK, out.Text, out.Fix = false, err.Error(), "see the server's log"
	case last > cp.Size+10_000:
		out.OK, out.Text = false, fmt.Sprintf("%d of %d events are not in the log yet", last-cp.Size, last)
		out.Fix = "is the disk full? see the server's log"
	default:
		out.Text = fmt.Sprintf("%d events, %d in the signed log", last, cp.Size)
	}
	return out
}

// checkAudiences is S1: no agent may have JWT-SVIDs for what a target would accept.
func (s *Server) checkAudiences() api.Check {
	out := api.Check{Name: "audiences", OK: true, Text: "no agent can fetch a JWT-SVID for a target's audience"}
	rev := s.rev.Load()
	for _, a := range rev.set.Agents {
		for _, aud := range a.Audiences {
			if _, ok := s.location(aud); ok || rev.audiences[aud] || aud == s.cfg.GrantIssuer {
				out.OK, out.Text = false, fmt.Sprintf("%s lists the audience %s, which a target uses", a.Name, aud)
				out.Fix = "take it out of the agent's audiences: targets trust grants, never SVIDs"
			}
		}
	}
	return out
}
