// SPDX-License-Identifier: Apache-2.0

// Package ticket is the evidence source of change tickets in an HTTP system (S15). It reads a ticket over verified TLS when a
// request needs it, at most 30 s before, and answers with what the ticket says if it is about what the request asks: its id,
// its service and namespace, its window, people of the listed groups who have no part in the run.
//
// It never writes to the ticket system, follows no redirect, and starts no goroutine of its own.
package ticket

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/evidence"
)

// MaxAge is how old a reading may be, at a decision and at a mint.
const MaxAge = 30 * time.Second

const maxCached = 1024

// Deps are what the source uses besides its file. All are required but Now.
type Deps struct {
	Name string // of the EvidenceSource
	// Secret reads the secret that the file refers to, at each use. Required if there is a token.
	Secret func(SecretRef) (remit.Secret, error)
	// Parties returns who must have no hand in the ticket: the run's starter, the agents of the run, their owners. An error
	// denies.
	Parties func(req *remit.Request) ([]string, error)
	// Claims remembers which run a ticket serves.
	Claims Claims
	Now    func() time.Time
}

// Claims binds tickets to runs: one ticket serves one run (S15). It is safe for concurrent use.
type Claims interface {
	// Claim binds the ticket to run if no other run has it, durably and atomically, and returns the run that has it now. The
	// same run may claim again. It is called when everything else about the ticket holds, before the decision is recorded.
	Claim(ctx context.Context, source, ticket string, run remit.RunID) (remit.RunID, error)
}

// Source is one configured ticket system. It is safe for concurrent use.
type Source struct {
	cfg    Config
	deps   Deps
	id     *regexp.Regexp
	client *http.Client

	mu     sync.Mutex // guards cached
	cached map[string]ticket
}

var (
	_ evidence.Source  = (*Source)(nil)
	_ evidence.Fresher = (*Source)(nil)
)

// New checks the configuration. It does not connect.
func New(cfg Config, deps Deps) (*Source, error) {
	if deps.Name == "" || deps.Parties == nil || deps.Claims == nil {
		return nil, errors.New("ticket: name, parties and claims are required")
	}
	id, err := cfg.check()
	if err != nil {
		return nil, err
	}
	if cfg.Token != (SecretRef{}) && deps.Secret == nil {
		return nil, errors.New("ticket: a token needs Secret")
	}
	client, err := newClient(&cfg)
	if err != nil {
		return nil, err
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	return &Source{cfg: cfg, deps: deps, id: id, client: client, cached: map[string]ticket{}}, nil
}

// Close drops idle connections; the Source must not be used afterwards.
func (s *Source) Close() { s.client.CloseIdleConnections() }

// Find implements evidence.Source. A reading that this Source made within MaxAge is used again.
func (s *Source) Find(ctx context.Context, need remit.Need, req *remit.Request) (*remit.Evidence, *remit.Reason) {
	switch {
	case need.Kind != remit.EvidenceTicket:
		return nil, &remit.Reason{Code: remit.ReasonEvidenceMissing, Want: string(need.Kind), Got: "source " + s.deps.Name + " reads tickets"}
	case need.ID == "":
		return nil, &remit.Reason{Code: remit.ReasonEvidenceMissing, Want: "a ticket id"}
	case len(need.ID) > 128 || !s.id.MatchString(need.ID) || need.ID == "." || need.ID == "..":
		return nil, &remit.Reason{Code: remit.ReasonEvidenceInvalid, Want: "an id like " + s.cfg.ID, Got: clip(need.ID)}
	}
	t, err := s.current(ctx, need.ID)
	if err != nil {
		return nil, why(need.ID, err)
	}
	if reason := s.hold(&t, need, req); reason != nil {
		return nil, reason
	}
	if meets(&t, need) { // a ticket that policy will refuse is not used up
		run, err := s.deps.Claims.Claim(ctx, s.deps.Name, need.ID, req.Run)
		if err != nil {
			return nil, &remit.Reason{Code: remit.ReasonEvidenceSource, Want: "ticket " + need.ID + " bound to this run", Got: err.Error()}
		}
		//remit:guard S15 TestOneTicketServesOneRun
		if run != req.Run {
			return nil, &remit.Reason{Code: remit.ReasonEvidenceField, Want: "a ticket that no run has used", Got: "used by another run"}
		}
	}
	return &remit.Evidence{ID: remit.NewEvidenceID(), Kind: remit.EvidenceTicket, Source: s.deps.Name, Signer: s.deps.Name, Name: need.ID,
		Made: t.read, Verified: t.read, Until: t.end, Fields: maps.Clone(t.fields), Digest: t.digest}, nil
}

// Fresh implements evidence.Fresher: a fact of this source may still carry a mint if a reading of at most MaxAge, the newest that
// there is, says what it said (S15).
func (s *Source) Fresh(ctx context.Context, e *remit.Evidence) *remit.Reason {
	now := s.deps.Now()
	//remit:guard S15 TestStateIsReadAgain
	if !now.Before(e.Until) {
		return &remit.Reason{Code: remit.ReasonEvidenceStale, Want: "inside the change window", Got: "it ended " + e.Until.Format(time.RFC3339)}
	}
	t, err := s.current(ctx, e.Name)
	if err != nil {
		return why(e.Name, err)
	}
	//remit:guard S15 TestStateIsReadAgain
	if !maps.Equal(t.fields, e.Fields) {
		return &remit.Reason{Code: remit.ReasonEvidenceField, Want: "ticket " + e.Name + " as it was decided on", Got: "it changed"}
	}
	return nil
}

// current returns a reading of at most MaxAge.
func (s *Source) current(ctx context.Context, id string) (ticket, error) {
	now := s.deps.Now()
	s.mu.Lock()
	t, ok := s.cached[id]
	s.mu.Unlock()
	if age := now.Sub(t.read); ok && age >= 0 && age <= MaxAge {
		return t, nil
	}
	t, err := s.fetch(ctx, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cached, id)
	if err != nil {
		return ticket{}, err
	}
	if len(s.cached) >= maxCached {
		clear(s.cached) // simple, and rare: a thousand tickets within half a minute
	}
	s.cached[id] = t
	return t, nil
}

// hold checks what makes the ticket one for this request at all, whatever its state is.
func (s *Source) hold(t *ticket, need remit.Need, req *remit.Request) *remit.Reason {
	field := func(want, got string) *remit.Reason {
		return &remit.Reason{Code: remit.ReasonEvidenceField, Of: "evidence.ticket", Want: want, Got: got}
	}
	//remit:guard S15 TestWrongTicketHasItsOwnReason
	if t.fields["id"] != need.ID {
		return &remit.Reason{Code: remit.ReasonEvidenceSubject, Want: "ticket " + need.ID, Got: clip(t.fields["id"])}
	}
	for name, arg := range s.cfg.Same {
		//remit:guard S15 TestWrongTicketHasItsOwnReason
		if v, ok := req.Args[arg]; !ok || v.Text() != t.fields[name] || v.Text() == "" {
			return field(fmt.Sprintf("%s %s, as the argument %s", name, v, arg), clip(t.fields[name]))
		}
	}
	//remit:guard S15 TestWrongTicketHasItsOwnReason
	if req.At.Before(t.start) || !req.At.Before(t.end) {
		return &remit.Reason{Code: remit.ReasonEvidenceStale, Want: "inside the change window",
			Got: t.start.Format(time.RFC3339) + " to " + t.end.Format(time.RFC3339)}
	}
	//remit:guard S15 TestWrongTicketHasItsOwnReason
	if !overlap(t.requesters, s.cfg.RequesterGroups) {
		return field("a requester of a listed group", clip(strings.Join(t.requesters, ", ")))
	}
	//remit:guard S15 TestWrongTicketHasItsOwnReason
	if !overlap(t.approvers, s.cfg.ApproverGroups) {
		return field("an approver of a listed group", clip(strings.Join(t.approvers, ", ")))
	}
	parties, err := s.deps.Parties(req)
	if err != nil {
		return &remit.Reason{Code: remit.ReasonFault, Got: err.Error()}
	}
	parties = append([]string{string(req.Agent)}, parties...)
	for _, role := range []string{"requester", "approver"} {
		for _, p := range parties {
			//remit:guard S15 TestWrongTicketHasItsOwnReason
			if s.same(t.fields[role], p) {
				return field("a "+role+" with no part in the run", clip(p))
			}
		}
	}
	//remit:guard S15 TestWrongTicketHasItsOwnReason
	if s.same(t.fields["requester"], t.fields["approver"]) {
		return field("an approver who is not the requester", clip(t.fields["approver"]))
	}
	return nil
}

// same reports whether two names mean one person, as far as names can say. It is generous, because a wrong yes denies:
// case, kind ("operator/ann") and mail domain do not tell people apart.
func (s *Source) same(login, party string) bool {
	if known, ok := s.cfg.People[login]; ok && strings.EqualFold(known, strings.TrimSpace(party)) {
		return true
	}
	a, b := bare(login), bare(party)
	return a != "" && a == b
}

func bare(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	name = name[strings.LastIndex(name, "/")+1:]
	name, _, _ = strings.Cut(name, "@")
	return name
}

// meets reports whether the ticket says what the need asks; policy judges that, this only spares a ticket.
func meets(t *ticket, need remit.Need) bool {
	for name, want := range need.Match {
		//remit:guard S15 TestRefusedStateIsNotClaimed
		if t.fields[name] != want {
			return false
		}
	}
	return true
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// why turns an error of fetch into a reason.
func why(id string, err error) *remit.Reason {
	r := &remit.Reason{Code: remit.ReasonEvidenceSource, Want: "ticket " + id, Got: err.Error()}
	switch {
	case errors.Is(err, errNoTicket):
		r.Code = remit.ReasonEvidenceMissing
	case errors.Is(err, errReply):
		r.Code = remit.ReasonEvidenceInvalid
	}
	return r
}

// clip bounds a stranger's text that stands in a reason.
func clip(s string) string { return fmt.Sprintf("%.120q", s) }
