// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"remit"
	"remit/internal/gateway/login/logintest"
)

// memory is a Store.
type memory struct {
	mu       sync.Mutex // guards all
	sessions map[remit.SessionID]remit.Session
	people   map[remit.Name]remit.PersonRecord
	epochs   map[remit.EpochKey]uint64
	events   []remit.Event
}

func (m *memory) Session(id remit.SessionID) (remit.Session, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sessions[id]
	return s, ok
}

func (m *memory) Person(n remit.Name) (remit.PersonRecord, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.people[n], m.epochs[remit.PersonKey(n)]
}

func (m *memory) Commit(_ context.Context, c remit.Change) (remit.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range c.Require {
		if m.epochs[p.Key] != p.Epoch {
			return remit.Receipt{}, &remit.Error{Code: remit.CodeConflict}
		}
	}
	for _, r := range c.Rows {
		m.epochs[r.EpochKey()]++
		switch r := r.(type) {
		case remit.Session:
			m.sessions[r.ID] = r
		case remit.PersonRecord:
			m.people[r.Name] = r
		}
	}
	m.events = append(m.events, c.Events...)
	return remit.Receipt{}, nil
}

type fixture struct {
	*Handler
	t     *testing.T
	store *memory
	now   time.Time
}

const (
	mine   = "thumbprint-of-mine"
	theirs = "thumbprint-of-theirs"
)

// newHandler has no provider that answers; with one see withProvider.
func newHandler(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Now(), store: &memory{sessions: map[remit.SessionID]remit.Session{}, people: map[remit.Name]remit.PersonRecord{},
		epochs: map[remit.EpochKey]uint64{}}}
	var err error
	f.Handler, err = New(Config{Issuer: "https://127.0.0.1:1", ClientID: logintest.ClientID, Name: "preferred_username", Scopes: []string{"profile"},
		Rules: []Rule{{"groups", "admins", []string{"admin"}}, {"groups", "audit", []string{"auditor", "responder"}}}, Life: time.Hour,
		HTTP: http.DefaultClient, Store: f.store, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return f.now },
		Local: func(n remit.Name) (string, bool) {
			return map[remit.Name]string{"operator/both": "sub-both"}[n], n == "operator/ci" || n == "operator/both"
		}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var accounts = map[string]logintest.Account{
	"alice":   {Subject: "alice", Name: "alice", Groups: []string{"admins", "everybody"}},
	"nobody":  {Subject: "nobody", Name: "nobody", Groups: []string{"everybody"}},
	"weird":   {Subject: "weird", Name: "../alice", Groups: []string{"admins"}},
	"shouter": {Subject: "shouter", Name: "Alice", Groups: []string{"admins"}},
}

func withProvider(t *testing.T) (*fixture, *logintest.Provider) {
	t.Helper()
	p := logintest.Start(t, accounts)
	f := newHandler(t)
	f.cfg.Issuer, f.cfg.HTTP = p.Issuer, p.Client()
	return f, p
}

// come logs the account in by browser as far as the provider goes.
func (f *fixture) come(p *logintest.Provider, account string) Finish {
	f.t.Helper()
	st, err := f.start(f.t.Context(), Start{Flow: "browser", Redirect: "http://127.0.0.1:1/callback"}, mine, "192.0.2.1")
	if err != nil {
		f.t.Fatal(err)
	}
	back, err := p.Browse(account, st.URL, false)
	if err != nil {
		f.t.Fatal(err)
	}
	return Finish{Login: st.Login, Code: back.Get("code"), State: back.Get("state")}
}

// TestLogin: what must work, by browser and by code.
func TestLogin(t *testing.T) {
	f, p := withProvider(t)
	in := f.come(p, "alice")
	g, err := f.finish(t.Context(), in, mine)
	if err != nil || g.Person != "operator/alice" || !slices.Equal(g.Roles, []string{"admin"}) {
		t.Fatalf("%+v %v", g, err)
	}
	who, err := f.Session(g.Token, mine, f.now)
	if err != nil || who.Person != "operator/alice" || !who.HasRole("author") || who.Method != remit.MethodSession {
		t.Errorf("%+v %v", who, err)
	}
	if _, err := f.finish(t.Context(), in, mine); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("a second time: %v", err)
	}
	for _, e := range f.store.events {
		if strings.Contains(string(e.Data), g.Token[len(g.Session):]) || strings.Contains(string(e.Data), in.Code) {
			t.Errorf("the ledger holds a secret: %s", e.Data)
		}
	}
	if s := f.store.sessions[g.Session]; strings.Contains(fmt.Sprint(s), strings.TrimPrefix(g.Token, string(g.Session)+".")) {
		t.Error("the store holds the token")
	}

	st, err := f.start(t.Context(), Start{Flow: "device"}, theirs, "192.0.2.1")
	if err != nil || st.UserCode == "" {
		t.Fatalf("%+v %v", st, err)
	}
	if err := p.Approve("alice", st.URL, st.UserCode); err != nil {
		t.Fatal(err)
	}
	if g, err = f.finish(t.Context(), Finish{Login: st.Login}, theirs); err != nil || g.Person != "operator/alice" {
		t.Fatalf("by code: %+v %v", g, err)
	}
	if _, err := f.Session(g.Token, mine, f.now); err == nil {
		t.Error("the session of another key")
	}
}

// TestLoginIsBoundToItsKey: who saw the code, or the login's name, has no key that the session could be bound to.
func TestLoginIsBoundToItsKey(t *testing.T) {
	f, p := withProvider(t)
	in := f.come(p, "alice")
	if g, err := f.finish(t.Context(), in, theirs); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("with another key: %+v %v", g, err)
	}
	if _, err := f.finish(t.Context(), in, mine); err != nil {
		t.Errorf("the owner cannot go on: %v", err)
	}
}

// TestStateMustComeBack: a code of another login, slipped into this one, logs nobody in.
func TestStateMustComeBack(t *testing.T) {
	f, p := withProvider(t)
	in := f.come(p, "alice")
	in.State = "another"
	if g, err := f.finish(t.Context(), in, mine); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("%+v %v", g, err)
	}
	in = f.come(p, "alice")
	f.waiting[in.Login].verifier += "x"
	if g, err := f.finish(t.Context(), in, mine); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("another PKCE verifier: %+v %v", g, err)
	}
}

func TestNonceMustMatch(t *testing.T) {
	f, p := withProvider(t)
	in := f.come(p, "alice")
	f.waiting[in.Login].nonce = "another"
	if g, err := f.finish(t.Context(), in, mine); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("%+v %v", g, err)
	}
}

// TestNamesAreRefusedNotCleaned, and whoever has no role gets no session; both are on record.
// TestBrowserLoginIsFresh: a program that opens the browser cannot finish a login with whom the provider remembers there, even if it takes
// away what asks the provider for a new login.
func TestBrowserLoginIsFresh(t *testing.T) {
	f, p := withProvider(t)
	begin := func() Started {
		st, err := f.start(t.Context(), Start{Flow: "browser", Redirect: "http://127.0.0.1:1/callback"}, mine, "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := begin()
	u, err := url.Parse(st.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Get("prompt") != "login" || q.Get("max_age") != "0" {
		t.Errorf("%s", st.URL)
	}
	q.Del("prompt")
	q.Del("max_age")
	u.RawQuery = q.Encode()
	back, err := p.Browse("alice", u.String(), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.finish(t.Context(), Finish{st.Login, back.Get("code"), back.Get("state")}, mine); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("it is not said when: %v", err)
	}
	f.now = f.now.Add(5 * time.Minute)
	if _, err := f.finish(t.Context(), f.come(p, "alice"), mine); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("five minutes before it began: %v", err)
	}
}

func TestNamesAreRefusedNotCleaned(t *testing.T) {
	f, p := withProvider(t)
	for _, account := range []string{"weird", "shouter", "nobody"} {
		if g, err := f.finish(t.Context(), f.come(p, account), mine); remit.CodeOf(err) != remit.CodeForbidden {
			t.Errorf("%s: %+v %v", account, g, err)
		}
	}
	if len(f.store.sessions) != 0 || len(f.store.people) != 0 || len(f.store.events) != 1 {
		t.Errorf("left behind: %+v", f.store)
	}
}

// TestWrongTokens: an ID token that has ended, and one that was made for another client.
func TestWrongTokens(t *testing.T) {
	f, p := withProvider(t)
	if _, err := f.finish(t.Context(), f.come(p, "alice"), mine); err != nil { // the provider is discovered now
		t.Fatal(err)
	}
	in := f.come(p, "alice")
	f.now = f.now.Add(3 * time.Hour) // the ID token is over; so is the login
	f.waiting[in.Login].until = f.now.Add(time.Minute)
	if g, err := f.finish(t.Context(), in, mine); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("an ID token that has ended: %+v %v", g, err)
	}
	f.now = time.Now()
	in = f.come(p, "alice")
	c, provider, err := f.oauth(t.Context(), "http://127.0.0.1:1/callback")
	if err != nil {
		t.Fatal(err)
	}
	w := f.waiting[in.Login]
	token, err := c.Exchange(oidc.ClientContext(t.Context(), f.cfg.HTTP), in.Code, oauth2.VerifierOption(w.verifier))
	if err != nil {
		t.Fatal(err)
	}
	if who, err := f.verify(t.Context(), provider, token, w); err != nil {
		t.Errorf("the right client: %+v %v", who, err)
	}
	f.cfg.ClientID = "another"
	if who, err := f.verify(t.Context(), provider, token, w); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("another client's: %+v %v", who, err)
	}
}

func TestRedirectIsLoopback(t *testing.T) {
	f := newHandler(t)
	for _, redirect := range []string{"", "https://127.0.0.1:1/", "http://127.0.0.1/", "http://evil.example:80/", "http://127.0.0.1:1@evil.example:2/",
		"http://localhost.evil.example:1/", "http://127.0.0.1:1/#x", "http://0.0.0.0:1/"} {
		if _, err := f.start(t.Context(), Start{Flow: "browser", Redirect: redirect}, mine, "192.0.2.1"); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%q: %v", redirect, err)
		}
	}
	if _, err := f.start(t.Context(), Start{Flow: "browser", Redirect: "http://127.0.0.1:1/"}, mine, "192.0.2.1"); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("no provider: %v", err)
	}
}

func TestWaitingLoginsAreBounded(t *testing.T) {
	f := newHandler(t)
	fill := func(address string, n int) (code remit.Code) {
		for i := range n {
			if err := f.keep(fmt.Sprint(address, i), &waiting{address: address, until: f.now.Add(waitFor)}, f.now); err != nil {
				return remit.CodeOf(err)
			}
		}
		return ""
	}
	if code := fill("a", maxWaitingAddress+1); code != remit.CodeExhausted {
		t.Errorf("one address: %q", code)
	}
	if code := fill("b", 1); code != "" {
		t.Errorf("another address: %q", code)
	}
	for i := range maxWaiting / maxWaitingAddress {
		_ = fill(fmt.Sprint("c", i, "-"), maxWaitingAddress)
	}
	if len(f.waiting) > maxWaiting {
		t.Errorf("%d wait", len(f.waiting))
	}
	f.now = f.now.Add(waitFor)
	if code := fill("a", 1); code != "" || len(f.waiting) != 1 {
		t.Errorf("later: %q, %d wait", code, len(f.waiting))
	}
}

// TestStrangersKeepThemselvesOut: one host of IPv6 is one, whatever of its addresses it comes from; and who has a whole network takes the last
// place from himself, not from others.
func TestStrangersKeepThemselvesOut(t *testing.T) {
	f := newHandler(t)
	n := 0
	keep := func(address string) error {
		n++
		f.now = f.now.Add(time.Millisecond)
		return f.keep(fmt.Sprint(n), &waiting{address: address, until: f.now.Add(waitFor)}, f.now)
	}
	for i := range maxWaitingAddress {
		if err := keep(fmt.Sprintf("2001:db8:1:1::%x", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := keep("2001:db8:1:1:ffff::1"); remit.CodeOf(err) != remit.CodeExhausted {
		t.Errorf("one host with many addresses: %v", err)
	}
	if err := keep("192.0.2.1"); err != nil { // somebody
		t.Fatal(err)
	}
	mine := fmt.Sprint(n)
	for i := range 2 * maxWaiting {
		if err := keep(fmt.Sprintf("2001:db8:2:%x::1", i)); i >= maxWaiting && remit.CodeOf(err) != remit.CodeExhausted {
			t.Fatalf("the flooder's own place is given up for him: %v", err)
		}
	}
	if len(f.waiting) != maxWaiting || f.waiting[mine] == nil {
		t.Fatalf("%d wait; the login that began before the flood: %v", len(f.waiting), f.waiting[mine])
	}
	for _, address := range []string{"198.51.100.7", "203.0.113.9", "2001:db8:3::1"} {
		if err := keep(address); err != nil || len(f.waiting) != maxWaiting {
			t.Errorf("%s while a stranger floods: %v, %d wait", address, err, len(f.waiting))
		}
	}
	if f.waiting[mine] == nil {
		t.Error("a login of somebody else made room")
	}
}

// session makes one without a provider.
func (f *fixture) session(name, subject string, groups ...string) (Granted, error) {
	return f.open(f.t.Context(), verified{subject: subject, name: remit.Name("operator/" + name), claims: map[string][]string{"groups": groups}}, mine)
}

func (f *fixture) must(name, subject string) Granted {
	f.t.Helper()
	g, err := f.session(name, subject, "audit")
	if err != nil {
		f.t.Fatal(err)
	}
	return g
}

func (f *fixture) refused(what, token, thumbprint string, want remit.Code) {
	f.t.Helper()
	if who, err := f.Session(token, thumbprint, f.now); remit.CodeOf(err) != want {
		f.t.Errorf("%s: %+v %v", what, who, err)
	}
}

func TestSessionToken(t *testing.T) {
	f := newHandler(t)
	g := f.must("alice", "1")
	sum := sha256.Sum256([]byte(g.Token))
	for what, token := range map[string]string{"nothing": "", "the id alone": string(g.Session), "id and dot": string(g.Session) + ".", "its hash": string(g.Session) + "." + f.store.sessions[g.Session].TokenHash,
		"cut": g.Token[:len(g.Token)-1], "another hash": string(g.Session) + "." + hex.EncodeToString(sum[:]), "a JWT": "eyJhbGciOiJub25lIn0.e30."} {
		f.refused(what, token, mine, remit.CodeUnauthenticated)
	}
	f.refused("its own", g.Token, mine, "")
}

func TestSessionIsBoundToItsKey(t *testing.T) {
	f := newHandler(t)
	g := f.must("alice", "1")
	f.refused("with another key", g.Token, theirs, remit.CodeUnauthenticated)
	f.refused("without a key", g.Token, "", remit.CodeUnauthenticated)
}

func TestSessionEnds(t *testing.T) {
	f := newHandler(t)
	g, other := f.must("alice", "1"), f.must("alice", "1")
	if err := f.End(t.Context(), g.Session, "operator/alice"); err != nil {
		t.Fatal(err)
	}
	f.refused("ended", g.Token, mine, remit.CodeUnauthenticated)
	f.refused("another", other.Token, mine, "")
	f.ended = map[remit.SessionID]time.Time{} // another process of ours
	f.refused("ended, after a restart", g.Token, mine, remit.CodeUnauthenticated)
	if err := f.End(t.Context(), g.Session, "operator/alice"); err != nil {
		t.Errorf("twice: %v", err)
	}
}

func TestSessionExpires(t *testing.T) {
	f := newHandler(t)
	g := f.must("alice", "1")
	f.now = f.now.Add(time.Hour)
	f.refused("an hour later", g.Token, mine, remit.CodeUnauthenticated)
}

// TestNameIsPinned: who logged in with a name first keeps it, whatever a provider puts into the claim.
func TestNameIsPinned(t *testing.T) {
	f := newHandler(t)
	f.must("alice", "1")
	if g, err := f.session("alice", "2", "audit"); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("another account: %+v %v", g, err)
	}
	if n := len(f.store.events); n != 2 {
		t.Errorf("%d events", n)
	}
}

func TestNameOfALocalOperator(t *testing.T) {
	f := newHandler(t)
	for _, c := range []struct {
		name, subject string
		want          remit.Code
	}{{"ci", "1", remit.CodeForbidden}, {"both", "1", remit.CodeForbidden}, {"both", "sub-both", ""}} {
		if g, err := f.session(c.name, c.subject, "audit"); remit.CodeOf(err) != c.want {
			t.Errorf("%s %s: %+v %v", c.name, c.subject, g, err)
		}
	}
}

func TestForgottenNameEndsSessions(t *testing.T) {
	f := newHandler(t)
	g := f.must("alice", "1")
	if err := f.Forget(t.Context(), "operator/alice"); err != nil {
		t.Fatal(err)
	}
	f.refused("forgotten", g.Token, mine, remit.CodeUnauthenticated)
	if _, err := f.session("alice", "2", "audit"); err != nil {
		t.Errorf("the next account: %v", err)
	}
	f.refused("forgotten, and somebody else's", g.Token, mine, remit.CodeUnauthenticated)
}

// TestForgottenSessionStaysEnded: the same account logs in anew, and its session of before does not come back.
func TestForgottenSessionStaysEnded(t *testing.T) {
	f := newHandler(t)
	old := f.must("alice", "1")
	if err := f.Forget(t.Context(), "operator/alice"); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(time.Second)
	g := f.must("alice", "1")
	f.refused("of before it was forgotten", old.Token, mine, remit.CodeUnauthenticated)
	if _, err := f.Session(g.Token, mine, f.now); err != nil {
		t.Errorf("the new session: %v", err)
	}
}

// TestSessionOfALocalName: a session ends when the file gives its name to a local operator.
func TestSessionOfALocalName(t *testing.T) {
	f := newHandler(t)
	g := f.must("alice", "1")
	f.cfg.Local = func(remit.Name) (string, bool) { return "", true }
	f.refused("now a local operator's", g.Token, mine, remit.CodeUnauthenticated)
}

// TestRolesAreOfTodaysFile: a session gives what the file says now.
func TestRolesAreOfTodaysFile(t *testing.T) {
	f := newHandler(t)
	g := f.must("alice", "1")
	f.cfg.Rules = []Rule{{"groups", "audit", []string{"auditor"}}}
	if who, err := f.Session(g.Token, mine, f.now); err != nil || who.HasRole("responder") || !who.HasRole("auditor") || who.HasRole("admin") {
		t.Errorf("%+v %v", who, err)
	}
	f.cfg.Rules = []Rule{{"groups", "admins", []string{"admin"}}}
	f.refused("without a role", g.Token, mine, remit.CodeForbidden)
}
