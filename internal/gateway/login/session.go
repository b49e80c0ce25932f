// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"remit"
)

// pollFor is how long a device login's question waits for the person's answer; the client asks again.
const pollFor = 25 * time.Second

// finish ends a login in a session, or says that the person has not answered yet (CodeHeld).
func (h *Handler) finish(ctx context.Context, in Finish, thumbprint string) (Granted, error) {
	w, err := h.take(in, thumbprint)
	if err != nil {
		return Granted{}, err
	}
	c, p, err := h.oauth(ctx, w.redirect)
	if err != nil {
		h.release(in.Login, w, false)
		return Granted{}, err
	}
	ctx = oidc.ClientContext(ctx, h.cfg.HTTP)
	var t *oauth2.Token
	if w.device != nil {
		polling, cancel := context.WithTimeout(ctx, pollFor)
		t, err = c.DeviceAccessToken(polling, w.device)
		waits := err != nil && polling.Err() != nil && ctx.Err() == nil
		cancel()
		h.release(in.Login, w, !waits)
		if waits {
			return Granted{}, &remit.Error{Code: remit.CodeHeld, Msg: "the person has not answered yet"}
		}
	} else {
		t, err = c.Exchange(ctx, in.Code, oauth2.VerifierOption(w.verifier))
	}
	if err != nil {
		return Granted{}, h.provided("finish the login", err)
	}
	who, err := h.verify(ctx, p, t, w)
	if err != nil {
		return Granted{}, err
	}
	return h.open(ctx, who, thumbprint)
}

// verified is whom the provider's ID token names.
type verified struct {
	subject string
	name    remit.Name
	claims  map[string][]string // those that rules look at
}

// verify checks the ID token (OpenID Connect Core, section 3.1.3.7) and reads the claims.
func (h *Handler) verify(ctx context.Context, p *oidc.Provider, t *oauth2.Token, w *waiting) (verified, error) {
	refused := func(why string, err error) error {
		h.cfg.Log.Warn("login: the ID token is refused", "why", why, "err", err)
		return &remit.Error{Code: remit.CodeForbidden, Msg: "the identity provider's token is refused: " + why, Cause: err}
	}
	raw, ok := t.Extra("id_token").(string)
	if !ok {
		return verified{}, refused("there is no ID token", nil)
	}
	token, err := p.Verifier(&oidc.Config{ClientID: h.cfg.ClientID, Now: h.cfg.Now}).Verify(ctx, raw)
	if err != nil {
		return verified{}, refused("it does not verify", err)
	}
	//remit:guard S2 TestNonceMustMatch
	if w.device == nil && subtle.ConstantTimeCompare([]byte(token.Nonce), []byte(w.nonce)) != 1 { // the device flow has none
		return verified{}, refused("its nonce is another login's", nil)
	}
	var all map[string]any
	if err := token.Claims(&all); err != nil {
		return verified{}, refused("its claims cannot be read", err)
	}
	at, said := all["auth_time"].(float64)
	//remit:guard S2 TestBrowserLoginIsFresh
	if w.device == nil && (!said || time.Unix(int64(at), 0).Before(w.begun.Add(-skew))) {
		return verified{}, refused("the person did not log in for it: it is of a session that the provider remembers", nil)
	}
	if azp, ok := all["azp"]; ok && azp != h.cfg.ClientID || !ok && len(token.Audience) > 1 {
		return verified{}, refused("it was made for another client", nil)
	}
	out := verified{subject: token.Subject, claims: map[string][]string{}}
	for _, r := range h.cfg.Rules {
		out.claims[r.Claim] = texts(all[r.Claim])
	}
	if h.cfg.Groups != "" {
		out.claims[h.cfg.Groups] = texts(all[h.cfg.Groups])
	}
	name, _ := all[h.cfg.Name].(string)
	out.name, err = remit.ParseName("operator/" + name)
	//remit:guard S2 TestNamesAreRefusedNotCleaned
	if err != nil || token.Subject == "" {
		return verified{}, refused(fmt.Sprintf("the claim %s (%.40q) is no name: lower-case letters, digits, hyphens", h.cfg.Name, name), nil)
	}
	return out, nil
}

// texts reads a claim that is a text or a list of texts; anything else is nothing.
func texts(claim any) []string {
	switch v := claim.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, x := range v {
			if s, ok := x.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// roles are what claims map to, sorted.
func (h *Handler) roles(claims map[string][]string) []string {
	set := map[string]bool{}
	for _, r := range h.cfg.Rules {
		if slices.Contains(claims[r.Claim], r.Has) {
			for _, role := range r.Roles {
				set[role] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

type sessionData struct {
	Op      string            `json:"op"` // "login", "session.end"
	Session remit.SessionID   `json:"session,omitempty"`
	Issuer  string            `json:"issuer"`
	Subject string            `json:"subject"`
	Roles   []string          `json:"roles,omitempty"`
	Run     map[string]string `json:"run,omitempty"` // of a CI job
	Outcome string            `json:"outcome"`
}

// open makes a session of whom the provider named. It is on record before the token leaves; so is a refusal.
func (h *Handler) open(ctx context.Context, who verified, thumbprint string) (Granted, error) {
	now := h.cfg.Now()
	secret := rand.Text() + rand.Text() // 260 bits
	s := remit.Session{ID: remit.NewSessionID(), Person: who.name, Issuer: h.cfg.Issuer, Subject: who.subject, Claims: who.claims,
		TokenHash: hashOf(secret), Thumbprint: thumbprint, Started: now, Expires: now.Add(h.cfg.Life)}
	roles := h.roles(who.claims)
	data := sessionData{Op: "login", Session: s.ID, Issuer: s.Issuer, Subject: s.Subject, Roles: roles, Outcome: "ok"}
	change := remit.Change{Rows: []remit.Row{s}}
	refused := h.own(&change, &s)
	if refused == nil && len(roles) == 0 {
		refused = &remit.Error{Code: remit.CodeForbidden, Msg: string(who.name) + " has no role here", Hint: "an admin maps claims to roles in remit.yaml: people"}
	}
	if refused != nil {
		data.Outcome, data.Session, change = string(remit.CodeForbidden), "", remit.Change{}
	}
	body, err := json.Marshal(data)
	if err != nil {
		return Granted{}, err
	}
	change.Events = []remit.Event{{At: now, Kind: remit.EventAdmin, By: string(who.name), Data: body}}
	if _, err := h.cfg.Store.Commit(ctx, change); err != nil {
		return Granted{}, err
	}
	if refused != nil {
		return Granted{}, refused
	}
	return Granted{Session: s.ID, Token: string(s.ID) + "." + secret, Person: s.Person, Roles: roles, Expires: s.Expires}, nil
}

// own refuses a name that is somebody else's, and pins one that is nobody's yet.
func (h *Handler) own(change *remit.Change, s *remit.Session) error {
	taken := &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("the name %s belongs to another account", s.Person),
		Hint: "if a person's account was replaced, an admin frees the name: remit login forget"}
	subject, local := h.cfg.Local(s.Person)
	//remit:guard S2 TestNameOfALocalOperator
	if local && subject != s.Subject {
		return taken
	}
	//remit:guard S2 TestJobsNameIsNoPersons
	if h.jobOf(s.Person) != nil {
		return taken
	}
	p, epoch := h.cfg.Store.Person(s.Person)
	if p.Subject == "" {
		change.Rows = append(change.Rows, remit.PersonRecord{Name: s.Person, Issuer: s.Issuer, Subject: s.Subject, First: s.Started})
		change.Require = append(change.Require, remit.Precondition{Key: remit.PersonKey(s.Person), Epoch: epoch})
		return nil
	}
	//remit:guard S2 TestNameIsPinned
	if p.Issuer != s.Issuer || p.Subject != s.Subject {
		return taken
	}
	return nil
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

var noSession = &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no session, or one that has ended", Hint: "remit login"}

// Session returns the person whose session the token is, over a connection with the certificate of that thumbprint.
func (h *Handler) Session(token, thumbprint string, at time.Time) (remit.Principal, error) {
	id, secret, ok := strings.Cut(token, ".")
	if !ok || thumbprint == "" {
		return remit.Principal{}, noSession
	}
	s, ok := h.cfg.Store.Session(remit.SessionID(id))
	if !ok {
		return remit.Principal{}, noSession
	}
	//remit:guard S2 TestSessionToken
	if subtle.ConstantTimeCompare([]byte(hashOf(secret)), []byte(s.TokenHash)) != 1 {
		return remit.Principal{}, noSession
	}
	//remit:guard S2 TestSessionIsBoundToItsKey
	if subtle.ConstantTimeCompare([]byte(thumbprint), []byte(s.Thumbprint)) != 1 {
		return remit.Principal{}, noSession
	}
	h.mu.Lock()
	_, gone := h.ended[s.ID]
	h.mu.Unlock()
	//remit:guard S2 TestSessionEnds
	if gone || !s.Ended.IsZero() {
		return remit.Principal{}, noSession
	}
	//remit:guard S2 TestSessionExpires
	if !at.Before(s.Expires) {
		return remit.Principal{}, noSession
	}
	if s.Job {
		return h.jobSession(&s)
	}
	//remit:guard S2 TestJobsNameIsNoPersons
	if h.jobOf(s.Person) != nil {
		return remit.Principal{}, noSession
	}
	p, _ := h.cfg.Store.Person(s.Person)
	//remit:guard S2 TestForgottenNameEndsSessions
	if s.Issuer != h.cfg.Issuer || p.Subject != s.Subject {
		return remit.Principal{}, noSession
	}
	//remit:guard S2 TestForgottenSessionStaysEnded
	if p.Issuer != s.Issuer || s.Started.Before(p.First) {
		return remit.Principal{}, noSession
	}
	subject, local := h.cfg.Local(s.Person)
	//remit:guard S2 TestSessionOfALocalName
	if local && subject != s.Subject {
		return remit.Principal{}, noSession
	}
	roles := h.roles(s.Claims)
	//remit:guard S2 TestRolesAreOfTodaysFile
	if len(roles) == 0 {
		return remit.Principal{}, &remit.Error{Code: remit.CodeForbidden, Msg: string(s.Person) + " has no role here any more"}
	}
	return remit.Principal{Person: s.Person, Roles: roles, Groups: s.Claims[h.cfg.Groups], Account: s.Issuer + "#" + s.Subject, Method: remit.MethodSession,
		Credential: string(s.ID), Expires: s.Expires}, nil
}

// End ends a session at once, then on record. Ending what has ended succeeds.
func (h *Handler) End(ctx context.Context, id remit.SessionID, by string) error {
	s, ok := h.cfg.Store.Session(id)
	if !ok {
		return &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no session %.40q", id)}
	}
	now := h.cfg.Now()
	h.mu.Lock()
	maps.DeleteFunc(h.ended, func(_ remit.SessionID, until time.Time) bool { return !now.Before(until) })
	h.ended[id] = s.Expires
	h.mu.Unlock()
	if !s.Ended.IsZero() {
		return nil
	}
	s.Ended = now
	body, err := json.Marshal(sessionData{Op: "session.end", Session: id, Issuer: s.Issuer, Subject: s.Subject, Outcome: "ok"})
	if err != nil {
		return err
	}
	_, err = h.cfg.Store.Commit(ctx, remit.Change{Rows: []remit.Row{s}, Events: []remit.Event{{At: now, Kind: remit.EventAdmin, By: by, Data: body}}})
	return err
}

// Forget frees a name; sessions under it end.
func (h *Handler) Forget(ctx context.Context, n remit.Name) error {
	p, epoch := h.cfg.Store.Person(n)
	if p.Subject == "" {
		return &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("nobody logged in as %.80s", n)}
	}
	p.Issuer, p.Subject = "", ""
	_, err := h.cfg.Store.Commit(ctx, remit.Change{Rows: []remit.Row{p}, Require: []remit.Precondition{{Key: remit.PersonKey(n), Epoch: epoch}}})
	return err
}
