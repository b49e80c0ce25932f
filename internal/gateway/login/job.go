// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"remit"
)

// Job is a rule by which a CI job, proven by the token that its CI system gave it, is a principal here: the verified trigger of runs
// (S9). It logs in without a person, and its session is like a person's: bound to the key with which it came.
type Job struct {
	Name     remit.Name // operator/NAME
	Issuer   string
	Audience string
	Claims   map[string]string // what the token must say
	Roles    []string          // beside what workflows let it do
	Life     time.Duration
	// Verify returns the claims of a token of the issuer for exactly this audience, valid now.
	Verify func(ctx context.Context, token, audience string) (claims []byte, err error)
}

// JobLogin is what a job sends.
type JobLogin struct {
	Job   string `json:"job"` // the name of the rule
	Token string `json:"token"`
}

// ofRun are the claims that stand on record beside those of the rule: which run it was.
var ofRun = []string{"run_id", "run_attempt", "pipeline_id", "job_id", "sha", "ref"}

// job logs a CI job in. The token counts once: its use is on record with the session.
func (h *Handler) job(ctx context.Context, in JobLogin, thumbprint string) (Granted, error) {
	j := h.jobOf(remit.Name("operator/" + in.Job))
	if j == nil {
		return Granted{}, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("no job %.40q logs in here", in.Job), Hint: "an admin lists jobs in remit.yaml: jobs"}
	}
	raw, err := j.Verify(ctx, in.Token, j.Audience)
	if err != nil {
		h.cfg.Log.Warn("login: the token of a job is refused", "job", in.Job, "err", err)
		return Granted{}, err
	}
	claims, err := scalars(raw)
	if err != nil {
		return Granted{}, err
	}
	if err := j.admits(claims); err != nil {
		h.cfg.Log.Warn("login: the token of a job is refused", "job", in.Job, "subject", claims["sub"], "err", err)
		return Granted{}, err
	}
	now := h.cfg.Now()
	secret := rand.Text() + rand.Text() // 260 bits
	s := remit.Session{ID: remit.NewSessionID(), Person: j.Name, Job: true, Issuer: j.Issuer, Subject: claims["sub"], Claims: map[string][]string{},
		TokenHash: hashOf(secret), Thumbprint: thumbprint, Started: now, Expires: now.Add(j.Life)}
	data := sessionData{Op: "login", Session: s.ID, Issuer: s.Issuer, Subject: s.Subject, Roles: j.Roles, Run: map[string]string{}, Outcome: "ok"}
	for name := range j.Claims {
		s.Claims[name] = []string{claims[name]}
	}
	for _, name := range ofRun {
		if v := claims[name]; v != "" {
			data.Run[name] = v
		}
	}
	body, err := json.Marshal(data)
	if err != nil {
		return Granted{}, err
	}
	used := remit.Used{Issuer: "oidc " + j.Issuer, JTI: claims["jti"], Until: now.Add(time.Hour)} // longer than any token is taken
	_, err = h.cfg.Store.Commit(ctx, remit.Change{Rows: []remit.Row{s, used}, Require: []remit.Precondition{{Key: used.EpochKey()}},
		Events: []remit.Event{{At: now, Kind: remit.EventAdmin, By: string(j.Name), Data: body}}})
	if remit.CodeOf(err) == remit.CodeConflict {
		return Granted{}, &remit.Error{Code: remit.CodeConflict, Msg: "the token was used before: it counts once", Hint: "let the job ask its CI system for another", Cause: err}
	}
	if err != nil {
		return Granted{}, err
	}
	return Granted{Session: s.ID, Token: string(s.ID) + "." + secret, Person: s.Person, Roles: j.Roles, Expires: s.Expires}, nil
}

func (h *Handler) jobOf(n remit.Name) *Job {
	for i := range h.cfg.Jobs {
		if h.cfg.Jobs[i].Name == n {
			return &h.cfg.Jobs[i]
		}
	}
	return nil
}

// scalars reads the claims that are a text, a number or true or false; the verifier has refused names that stand twice.
func scalars(raw []byte) (map[string]string, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "the token is refused: its claims cannot be read", Cause: err}
	}
	out := map[string]string{}
	for name, v := range all {
		var text string
		if json.Unmarshal(v, &text) != nil {
			text = string(v)
		}
		if len(text) <= 512 && !strings.HasPrefix(text, "[") && !strings.HasPrefix(text, "{") {
			out[name] = text
		}
	}
	return out, nil
}

// admits says why the rule does not mean the job whose claims these are.
func (j *Job) admits(claims map[string]string) error {
	for name, want := range j.Claims {
		//remit:guard S16 TestJobsRefused
		if got := claims[name]; got != want {
			return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s is %.80q, want %q", name, got, want), Hint: "remit.yaml: jobs says which jobs may"}
		}
	}
	for _, name := range []string{"event_name", "pipeline_source"} {
		event := claims[name]
		//remit:guard S16 TestJobsRefused
		if strings.Contains(event, "pull_request") || strings.Contains(event, "merge_request") {
			return &remit.Error{Code: remit.CodeForbidden, Msg: "a run of " + event + " never logs in: its author chooses what runs"}
		}
	}
	protected, said := claims["ref_protected"]
	//remit:guard S16 TestJobsRefused
	if said && protected != "true" {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("the ref %.80q is not protected", claims["ref"])}
	}
	//remit:guard S16 TestJobsRefused
	if claims["jti"] == "" {
		return &remit.Error{Code: remit.CodeForbidden, Msg: "the token has no jti, so it could be used again"}
	}
	return nil
}

// jobSession returns the job whose session it is, if today's file still means it.
func (h *Handler) jobSession(s *remit.Session) (remit.Principal, error) {
	j := h.jobOf(s.Person)
	//remit:guard S2 TestJobsAreOfTodaysFile
	if j == nil || j.Issuer != s.Issuer {
		return remit.Principal{}, noSession
	}
	for name, want := range j.Claims {
		//remit:guard S2 TestJobsAreOfTodaysFile
		if got := s.Claims[name]; len(got) != 1 || got[0] != want {
			return remit.Principal{}, noSession
		}
	}
	return remit.Principal{Person: s.Person, Roles: j.Roles, Method: remit.MethodSession, Credential: string(s.ID), Expires: s.Expires}, nil
}

func checkJobs(jobs []Job) error {
	for i := range jobs {
		if j := &jobs[i]; j.Name == "" || j.Issuer == "" || j.Audience == "" || len(j.Claims) == 0 || j.Life <= 0 || j.Verify == nil {
			return errors.New("login: a part of a job is missing")
		}
	}
	return nil
}
