// SPDX-License-Identifier: Apache-2.0

package authorizer_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/authorizer"
	"remit/internal/store"
)

// line is the real authorizer and store, with parts whose steps a test can interrupt.
type line struct {
	store  *store.Store
	auth   *authorizer.Authorizer
	now    time.Time
	run    remit.Run
	launch remit.LaunchRecord

	judgement remit.Judgement
	needs     []remit.Need
	asks      []remit.Need // of rules, whatever was found
	permitted bool
	epoch     uint64
	step      func(name string) // called between every two steps
	stale     bool              // a fact does not hold any more when it is asked about again
	minted    int
	handed    bool
	abandoned int
}

func (l *line) Match(req *remit.Request, _ *remit.Run) remit.Match {
	l.step("match")
	m := remit.Match{Args: req.Args, Policy: "sha256:test", Epoch: l.epoch, Needs: l.needs}
	if l.permitted {
		m.Permission = &remit.Permission{Name: "apply"}
	} else {
		m.Reasons = []remit.Reason{{Code: remit.ReasonNoPermission}}
	}
	return m
}

func (l *line) Sensitive() map[string]bool { return nil }

func (l *line) Judge(_ context.Context, _ *remit.Request, _ *remit.Run, _ *remit.Match, found []remit.Found) remit.Judgement {
	l.step("judge")
	if len(l.asks) > 0 {
		return remit.Judgement{Effect: remit.Hold, Reasons: []remit.Reason{{Code: remit.ReasonRule}}, Asks: l.asks}
	}
	for _, f := range found {
		if f.Reason != nil {
			return remit.Judgement{Reasons: []remit.Reason{*f.Reason}}
		}
		if f.Evidence == nil {
			return remit.Judgement{Effect: remit.Hold, Reasons: []remit.Reason{{Code: remit.ReasonApproval}}}
		}
	}
	return l.judgement
}

func (l *line) Collect(_ context.Context, needs []remit.Need, _ *remit.Request) []remit.Found {
	l.step("collect")
	out := make([]remit.Found, len(needs))
	for i, n := range needs {
		if out[i].Need = n; n.Kind == remit.EvidenceApproval {
			continue
		}
		out[i] = remit.Found{Need: n, Evidence: &remit.Evidence{ID: remit.NewEvidenceID(), Kind: n.Kind, Source: n.Source}}
	}
	return out
}

func (l *line) Fresh(_ context.Context, found []remit.Found) ([]remit.Found, bool) {
	l.step("fresh")
	if !l.stale || len(found) == 0 {
		return found, true
	}
	now := slices.Clone(found)
	now[0].Evidence, now[0].Reason = nil, &remit.Reason{Code: remit.ReasonEvidenceField, Of: "evidence.ticket"}
	return now, false
}

func (l *line) Abandon(ctx context.Context, g remit.Grant, le remit.Lease, why string) {
	l.abandoned++
	g.State, le.State, le.Why = remit.GrantFailed, remit.GrantFailed, why
	_, _ = l.store.Commit(ctx, remit.Change{Rows: []remit.Row{g, le}})
}

func (l *line) Prepare(_ context.Context, d *remit.Decision, _ *remit.Request, _ *remit.Run) (remit.Grant, remit.Lease, error) {
	l.step("prepare")
	g := remit.Grant{ID: remit.NewGrantID(), Decision: d.ID, Agent: d.Agent, Run: d.Run, State: remit.GrantPending}
	return g, remit.Lease{ID: remit.NewLeaseID(), Grant: g.ID, Agent: d.Agent, Run: d.Run, State: remit.GrantPending}, nil
}

func (l *line) Mint(ctx context.Context, g remit.Grant, le remit.Lease, require []remit.Precondition) (remit.Grant, remit.Credential, error) {
	l.step("mint")
	l.minted++
	require = append(require, remit.Precondition{Key: le.EpochKey(), Epoch: 1}) // as the broker does
	l.step("activate")
	le.State, g.State = remit.GrantActive, remit.GrantActive
	if _, err := l.store.Commit(ctx, remit.Change{Rows: []remit.Row{g, le}, Require: require}); err != nil {
		return g, remit.Credential{}, err
	}
	l.handed = true
	return g, remit.Credential{Secret: remit.NewSecret("x")}, nil
}

const agent = remit.Name("agent/deploy")

func setUp(t *testing.T) *line {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(nil)
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(store.Config{Path: filepath.Join(t.TempDir(), "db"), Cipher: sealed, Sign: func(_, _ uint64, root [32]byte) (string, []byte, error) {
		return "test", ed25519.Sign(key, root[:]), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	now := time.Now()
	l := &line{store: s, now: now, permitted: true, judgement: remit.Judgement{Effect: remit.Allow, TTL: time.Minute},
		needs: []remit.Need{{Kind: remit.EvidenceScan, Source: "trivy"}}, step: func(string) {}}
	l.run = remit.Run{ID: remit.NewRunID(), Workflow: "deploy", Stage: "deploy", State: remit.RunActive, Started: now,
		Expires: now.Add(time.Hour), StageExpires: now.Add(time.Hour), Epoch: 1}
	l.launch = remit.LaunchRecord{ID: remit.NewLaunchID(), Agent: agent, Run: l.run.ID, Started: now}
	if _, err := s.Commit(t.Context(), remit.Change{Rows: []remit.Row{l.run, l.launch}}); err != nil {
		t.Fatal(err)
	}
	l.auth, err = authorizer.New(authorizer.Config{Policy: func() authorizer.Policy { return l }, State: s, Evidence: l, Record: l, Broker: l, Acts: s})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Commit is the store's, after a step of its own.
func (l *line) Commit(ctx context.Context, c remit.Change) (remit.Receipt, error) {
	l.step("commit")
	return l.store.Commit(ctx, c)
}

func (l *line) request() *remit.Request {
	return &remit.Request{At: l.now, Agent: agent, Run: l.run.ID, Action: "kubernetes.apply", Target: "cluster",
		Caller: remit.Principal{ID: spiffeid.RequireFromString("spiffe://company.com/agent/deploy"), Method: remit.MethodX509}}
}

// lastEffect reads the effect that the ledger holds, not the one that was answered.
func (l *line) lastDecision(t *testing.T) remit.Decision {
	t.Helper()
	entries, _, err := l.store.Events(store.EventFilter{}, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(entries) - 1; i >= 0; i-- {
		var e struct {
			Kind remit.EventKind
			Data json.RawMessage
		}
		if err := json.Unmarshal(entries[i].Open().Body, &e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == remit.EventDecision {
			var d remit.Decision
			if err := json.Unmarshal(e.Data, &d); err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	t.Fatal("no decision is in the ledger")
	return remit.Decision{}
}

func TestAllowIsRecordedBeforeItIsAnswered(t *testing.T) {
	l := setUp(t)
	d, err := l.auth.Decide(t.Context(), l.request())
	if err != nil || d.Effect != remit.Allow || d.Receipt == nil {
		t.Fatalf("%v, %+v", err, d)
	}
	if got := l.lastDecision(t); got.ID != d.ID || got.Effect != remit.Allow {
		t.Errorf("the ledger says %+v", got)
	}
}

func TestDefaultDeny(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*line, *remit.Request)
		want  remit.ReasonCode
	}{
		"refused before": {func(_ *line, r *remit.Request) {
			r.Refused = []remit.Reason{{Code: remit.ReasonRunToken}}
		}, remit.ReasonRunToken},
		"no agent":        {func(_ *line, r *remit.Request) { r.Agent = "" }, remit.ReasonUnknownAgent},
		"nobody verified": {func(_ *line, r *remit.Request) { r.Caller = remit.Principal{} }, remit.ReasonUnknownAgent},
		"suspended":       {func(l *line, _ *remit.Request) { l.store.SetSuspended(agent, "test") }, remit.ReasonSuspended},
		"halted":          {func(l *line, _ *remit.Request) { l.store.SetSuspended(remit.Installation, "the clock") }, remit.ReasonHalted},
		"launch unknown":  {func(_ *line, r *remit.Request) { r.Caller.Launch = remit.NewLaunchID() }, remit.ReasonRunToken},
		"launch ended": {func(l *line, r *remit.Request) {
			r.Caller.Launch = remit.NewLaunchID()
			_, _ = l.store.Commit(context.Background(), remit.Change{Rows: []remit.Row{remit.LaunchRecord{ID: r.Caller.Launch, Ended: l.now}}})
		}, remit.ReasonRunToken},
		"no run":        {func(_ *line, r *remit.Request) { r.Run = "" }, remit.ReasonNoRun},
		"unknown run":   {func(_ *line, r *remit.Request) { r.Run = remit.NewRunID() }, remit.ReasonNoRun},
		"run over":      {func(l *line, r *remit.Request) { r.At = l.now.Add(2 * time.Hour) }, remit.ReasonRunEnded},
		"other stage":   {func(_ *line, r *remit.Request) { r.Stage = "build" }, remit.ReasonRunMismatch},
		"no permission": {func(l *line, _ *remit.Request) { l.permitted = false }, remit.ReasonNoPermission},
		"zero judgement": {func(l *line, _ *remit.Request) {
			l.judgement = remit.Judgement{Reasons: []remit.Reason{{Code: remit.ReasonFault}}}
		}, remit.ReasonFault},
	} {
		t.Run(name, func(t *testing.T) {
			l := setUp(t)
			req := l.request()
			c.spoil(l, req)
			d, _, cred, err := l.auth.Grant(t.Context(), req)
			if err != nil || d.Effect != remit.Deny || len(d.Reasons) != 1 || d.Reasons[0].Code != c.want {
				t.Fatalf("%v, %+v", err, d)
			}
			if l.minted != 0 || !cred.Secret.IsZero() {
				t.Error("something was minted")
			}
			if got := l.lastDecision(t); got.ID != d.ID || got.Effect != remit.Deny {
				t.Errorf("the ledger says %+v", got)
			}
		})
	}
}

// S11: whatever moves between any two steps of the line, nothing is handed over, and the ledger holds no Allow that stands.
func TestNothingBetweenCheckAndUse(t *testing.T) {
	steps := []string{"match", "collect", "judge", "prepare", "commit", "fresh", "mint", "activate"}
	for _, move := range moves() {
		for _, step := range steps[slices.Index(steps, move.from):] {
			t.Run(move.name+" before "+step, func(t *testing.T) {
				l := setUp(t)
				req := l.request()
				req.Caller.Launch = l.launch.ID
				done := false
				l.step = func(s string) {
					if s == step && !done {
						done = true
						move.do(t, l)
					}
				}
				d, _, cred, err := l.auth.Grant(t.Context(), req)
				if !done {
					t.Fatal("the step was not reached")
				}
				if l.handed || !cred.Secret.IsZero() {
					t.Fatalf("a credential was handed over: %v %+v", err, d)
				}
				if step == "mint" || step == "activate" || step == "fresh" {
					if err == nil && (d.Effect != remit.Deny || l.lastDecision(t).ID != d.ID) {
						t.Error("neither a denial nor an error")
					}
					return
				}
				if err != nil || d.Effect != remit.Deny || l.lastDecision(t).Effect != remit.Deny || l.lastDecision(t).ID != d.ID {
					t.Errorf("%v, %+v", err, d)
				}
			})
		}
	}
}

// move is something that changes under the line, from a step on: before that step the line reads it as it is then.
type move struct {
	name, from string
	do         func(*testing.T, *line)
}

func moves() []move {
	return []move{
		{"suspend", "match", func(_ *testing.T, l *line) { l.store.SetSuspended(agent, "test") }},
		{"clock jump", "match", func(_ *testing.T, l *line) { l.store.SetSuspended(remit.Installation, "the clock jumped") }},
		{"stage end", "match", func(t *testing.T, l *line) { l.moveRun(t) }},
		{"stage end begun", "match", func(_ *testing.T, l *line) { l.store.Tighten(remit.RunKey(l.run.ID)) }},
		{"launch end", "match", func(_ *testing.T, l *line) { l.store.Tighten(remit.LaunchKey(l.launch.ID)) }},
		{"new evidence", "collect", func(t *testing.T, l *line) {
			l.commit(t, remit.Statement{ID: remit.NewEvidenceID(), Source: "trivy", Subjects: []remit.Digest{remit.DigestOf(nil)}})
		}},
		{"policy change", "match", func(t *testing.T, l *line) {
			l.commit(t, remit.Revision{Digest: remit.DigestOf([]byte("new")), At: l.now})
		}},
		{"signer distrusted", "match", func(t *testing.T, l *line) { // what a source trusts stands in its file: a new revision
			l.commit(t, remit.Revision{Digest: remit.DigestOf([]byte("without the signer")), At: l.now})
		}},
		{"revocation", "mint", func(t *testing.T, l *line) {
			for _, le := range l.store.LiveLeases(nil) {
				l.store.Tighten(le.EpochKey())
			}
		}},
	}
}

// S15: a ticket that is closed after the decision and before the mint. The denial is on record beside the Allow that it undoes.
func TestEvidenceIsAskedAgainBeforeMint(t *testing.T) {
	l := setUp(t)
	l.step = func(s string) { l.stale = l.stale || s == "commit" }
	d, _, cred, err := l.auth.Grant(t.Context(), l.request())
	if err != nil || d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonEvidenceField || len(d.Evidence) != 0 || len(d.Lacking) != 1 {
		t.Errorf("%v, %+v", err, d)
	}
	if l.minted != 0 || !cred.Secret.IsZero() || l.abandoned != 1 || len(l.store.LiveLeases(nil)) != 0 {
		t.Errorf("minted %d, abandoned %d", l.minted, l.abandoned)
	}
	if got := l.lastDecision(t); got.ID != d.ID || got.Effect != remit.Deny {
		t.Errorf("the ledger says %+v", got)
	}
}

func (l *line) moveRun(t *testing.T) {
	r := l.run
	r.State = remit.RunFinished
	l.commit(t, r)
}

func (l *line) commit(t *testing.T, r remit.Row) {
	t.Helper()
	if _, err := l.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{r}}); err != nil {
		t.Fatal(err)
	}
}

// failing refuses every write, as a full disk does.
type failing struct{}

func (failing) Commit(context.Context, remit.Change) (remit.Receipt, error) {
	return remit.Receipt{}, errors.New("disk full")
}

func TestNoAnswerWithoutRecord(t *testing.T) {
	l := setUp(t)
	auth, err := authorizer.New(authorizer.Config{Policy: func() authorizer.Policy { return l }, State: l.store, Evidence: l, Record: failing{}, Broker: l, Acts: l.store})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := auth.Decide(t.Context(), l.request()); err == nil || d.Effect != remit.Deny {
		t.Errorf("answered %v without a record: %v", d.Effect, err)
	}
	if d, _, cred, err := auth.Grant(t.Context(), l.request()); err == nil || d.Effect != remit.Deny || l.minted != 0 || !cred.Secret.IsZero() {
		t.Errorf("granted %v without a record: %v", d.Effect, err)
	}
}

// TestCutBySuspension: a mint that fails because the agent was suspended, or the run ended, meanwhile is answered by that denial, on record
// beside the Allow; one that fails by itself is an error.
func TestCutBySuspension(t *testing.T) {
	for want, cut := range map[remit.ReasonCode]func(*testing.T, *line){
		remit.ReasonSuspended: func(_ *testing.T, l *line) { l.store.SetSuspended(agent, "hijacked") },
		remit.ReasonRunEnded:  func(t *testing.T, l *line) { l.moveRun(t) },
		"": func(_ *testing.T, l *line) {
			for _, le := range l.store.LiveLeases(nil) {
				l.store.Tighten(le.EpochKey())
			}
		},
	} {
		l := setUp(t)
		l.step = func(s string) {
			if s == "mint" {
				cut(t, l)
			}
		}
		d, _, cred, err := l.auth.Grant(t.Context(), l.request())
		if l.minted != 1 || l.handed || !cred.Secret.IsZero() {
			t.Fatalf("%s: minted %d, handed over %v", want, l.minted, l.handed)
		}
		if want == "" {
			if err == nil {
				t.Errorf("a mint that failed: %+v", d)
			}
			continue
		}
		if err != nil || d.Effect != remit.Deny || d.Reasons[0].Code != want || d.Receipt == nil || d.Policy != "" {
			t.Errorf("%s: %v, %+v", want, err, d)
		}
		if got := l.lastDecision(t); got.ID != d.ID || got.Effect != remit.Deny {
			t.Errorf("%s: the ledger says %+v", want, got)
		}
	}
}
