// SPDX-License-Identifier: Apache-2.0

package citoken_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/citoken"
	"remit/internal/evidence/evidencetest"
	"remit/internal/identity/federation"
)

const audience = "https://remit.company.com"

var foo = remit.Image{Repository: "registry.company.com/foo", Digest: remit.DigestOf([]byte("foo"))}

// desk is a source over a real issuer, with the rows behind it.
type desk struct {
	*evidencetest.Issuer
	t      *testing.T
	now    time.Time
	cfg    citoken.Config
	source *citoken.Source
	rows   []remit.Statement
}

// Statements implements evidence.Statements, the newest first.
func (d *desk) Statements(source string, kind remit.EvidenceKind, subject remit.Digest, _ string, limit int) []remit.Statement {
	var out []remit.Statement
	for _, r := range slices.Backward(d.rows) {
		if r.Source == source && r.Kind == kind && slices.Contains(r.Subjects, subject) {
			out = append(out, r)
		}
	}
	return out[:min(limit, len(out))]
}

func newDesk(t *testing.T, change func(*citoken.Config)) *desk {
	t.Helper()
	server, err := evidencetest.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	d := &desk{Issuer: server, t: t, now: time.Now().Truncate(time.Second)}
	d.cfg = citoken.Config{Issuer: server.URL, Audience: audience, OwnerIDs: []string{"42"}}
	d.use(change)
	return d
}

func (d *desk) use(change func(*citoken.Config)) {
	d.t.Helper()
	if change != nil {
		change(&d.cfg)
	}
	issuer, err := federation.NewIssuer(d.URL, d.Client(), func() time.Time { return d.now })
	if err != nil {
		d.t.Fatal(err)
	}
	d.source, err = citoken.New(d.cfg, citoken.Deps{Name: "jobs", Statements: d, Verify: issuer.Verify})
	if err != nil {
		d.t.Fatal(err)
	}
}

// hand signs claims and hands them in for an image.
func (d *desk) hand(claims map[string]any, of remit.Digest) (*remit.Evidence, error) {
	d.t.Helper()
	token, err := d.Token(claims, nil, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	added, err := d.source.Add(context.Background(), []byte(`{"token":"`+token+`","subject":"`+string(of)+`"}`), "operator/ci", d.now)
	if err == nil {
		if strings.Contains(string(added.Row.Envelope), token[strings.LastIndex(token, "."):]) {
			d.t.Error("the token's signature is stored")
		}
		if added.Once == nil || added.Once.JTI != claims["jti"] || !added.Once.Until.After(d.now) {
			d.t.Errorf("used once: %+v", added.Once)
		}
		d.rows = append(d.rows, added.Row)
	}
	return added.Fact, err
}

func (d *desk) run() map[string]any { return d.GitHubRun(audience+"/"+string(foo.Digest), d.now) }

func (d *desk) find(match map[string]string) (*remit.Evidence, *remit.Reason) {
	d.t.Helper()
	return d.source.Find(context.Background(), remit.Need{Kind: remit.EvidenceCI, Source: "jobs", Of: foo, Match: match},
		&remit.Request{At: d.now, Target: "production-cluster"})
}

func TestRunIsFound(t *testing.T) {
	want := map[string]string{"repository": "company/foo", "repository_url": "https://github.com/company/foo", "repository_id": "4711",
		"repository_owner_id": "42", "ref": "refs/heads/main", "ref_protected": "true", "event": "push", "environment": "production",
		"commit": "4f3c0de0000000000000000000000000000000aa", "workflow": ".github/workflows/release.yml",
		"builder":    "https://github.com/company/foo/.github/workflows/release.yml@refs/heads/main",
		"invocation": "https://github.com/company/foo/actions/runs/1001/attempts/1"}
	d := newDesk(t, nil)
	if _, reason := d.find(nil); reason == nil || reason.Code != remit.ReasonEvidenceMissing {
		t.Errorf("nothing was handed in: %+v", reason)
	}
	if _, err := d.hand(d.run(), foo.Digest); err != nil {
		t.Fatal(err)
	}
	e, reason := d.find(nil)
	if reason != nil || !maps.Equal(e.Fields, want) || e.Signer != d.URL || !e.About(foo.Digest) || !e.Made.Equal(d.now) || e.Source != "jobs" {
		t.Errorf("%+v %+v", e, reason)
	}
	// Another run that vouches for the image hides nothing: the one that says what is asked is the answer.
	other := d.run()
	other["environment"], other["run_id"] = "staging", "1002"
	if _, err := d.hand(other, foo.Digest); err != nil {
		t.Fatal(err)
	}
	if e, _ := d.find(map[string]string{"environment": "production"}); e == nil || e.Fields["environment"] != "production" {
		t.Errorf("%+v", e)
	}
	if e, _ := d.find(map[string]string{"environment": "none"}); e == nil || e.Fields["environment"] != "staging" {
		t.Errorf("what nothing meets is not answered with the newest: %+v", e)
	}
}

func TestGitLab(t *testing.T) {
	d := newDesk(t, func(c *citoken.Config) { c.System, c.Binds = "gitlab", "sender" })
	if _, err := d.hand(d.GitLabJob(audience, d.now), foo.Digest); err != nil {
		t.Fatal(err)
	}
	e, reason := d.find(map[string]string{"repository_id": "4711", "workflow": ".gitlab-ci.yml", "ref": "refs/heads/main", "event": "push",
		"invocation": "https://gitlab.com/company/foo/-/jobs/2002", "repository": "company/foo"})
	if reason != nil || e.Fields["repository_owner_id"] != "42" || e.Fields["workflow"] != ".gitlab-ci.yml" {
		t.Fatalf("%+v %+v", e, reason)
	}
	mr := d.GitLabJob(audience, d.now)
	mr["pipeline_source"] = "merge_request_event"
	if _, err := d.hand(mr, foo.Digest); err == nil || !strings.Contains(err.Error(), "a run of no pull request") {
		t.Errorf("a merge request: %v", err)
	}
}

func TestTokenIsBoundToItsImage(t *testing.T) {
	d := newDesk(t, nil)
	_, err := d.hand(d.run(), remit.DigestOf([]byte("bar")))
	if remit.CodeOf(err) != remit.CodeUnauthenticated || !strings.Contains(err.Error(), "audience") {
		t.Errorf("a token about foo, handed in for bar: %v", err)
	}
	if _, err := d.hand(d.GitHubRun(audience, d.now), foo.Digest); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("a token about nothing: %v", err)
	}
}

func TestWrongRunHasItsOwnReason(t *testing.T) {
	for name, row := range map[string]struct {
		claim string
		value any
		why   string
	}{
		"fork's pull request":   {"event_name", "pull_request", "a run of no pull request"},
		"pull_request_target":   {"event_name", "pull_request_target", "a run of no pull request"},
		"no event":              {"event_name", nil, "not said which event"},
		"unprotected ref":       {"ref_protected", "false", "a protected ref"},
		"protection not said":   {"ref_protected", nil, "a protected ref"},
		"no repository id":      {"repository_id", nil, "no repository id"},
		"another owner":         {"repository_owner_id", "43", "a job of a listed owner"},
		"no owner":              {"repository_owner_id", nil, "a job of a listed owner"},
		"no jti":                {"jti", nil, "no jti"},
		"not printable":         {"environment", "prod\x07", "not printable"},
		"an id that is a list":  {"repository_id", []string{"4711"}, "no repository id"},
		"another name of an id": {"Repository_Owner_ID", "42", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, nil)
			c := d.run()
			c[row.claim] = row.value
			if row.value == nil {
				delete(c, row.claim)
			}
			_, err := d.hand(c, foo.Digest)
			if row.why == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.why) {
				t.Errorf("%v, want %q", err, row.why)
			}
			if _, reason := d.find(nil); reason == nil {
				t.Error("it became evidence")
			}
		})
	}
	d := newDesk(t, func(c *citoken.Config) { c.OwnerIDs, c.RepositoryIDs = nil, []string{"4711"} })
	c := d.run()
	c["repository_id"] = "4712" // the same name, taken over
	if _, err := d.hand(c, foo.Digest); remit.CodeOf(err) != remit.CodeForbidden || !strings.Contains(err.Error(), "a job of a listed repository") {
		t.Errorf("another repository of the same name: %v", err)
	}
}

func TestRefProtectedByUs(t *testing.T) {
	d := newDesk(t, func(c *citoken.Config) { c.ProtectedRefs = []string{"refs/heads/main"} })
	c := d.run()
	c["ref_protected"] = "false"
	if _, err := d.hand(c, foo.Digest); err != nil {
		t.Error(err)
	}
}

// TestAnotherIssuerNow: what an issuer vouched for that the source does not name any more, counts no more; so do rules that changed.
func TestAnotherIssuerNow(t *testing.T) {
	d := newDesk(t, nil)
	if _, err := d.hand(d.run(), foo.Digest); err != nil {
		t.Fatal(err)
	}
	d.use(func(c *citoken.Config) { c.OwnerIDs = []string{"1"} })
	if _, reason := d.find(nil); reason == nil || reason.Code != remit.ReasonEvidenceSigner {
		t.Errorf("an owner who is not listed any more: %+v", reason)
	}
	d.use(func(c *citoken.Config) { c.OwnerIDs, c.Issuer = []string{"42"}, "https://elsewhere.example" })
	if _, reason := d.find(nil); reason == nil || reason.Code != remit.ReasonEvidenceSigner || !strings.Contains(reason.Want, "elsewhere") {
		t.Errorf("an issuer that is not named any more: %+v", reason)
	}
	if _, err := d.source.Read(&d.rows[0]); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("shown as accepted: %v", err)
	}
}

func TestTargets(t *testing.T) {
	d := newDesk(t, func(c *citoken.Config) { c.Targets = []string{"staging"} })
	if _, err := d.hand(d.run(), foo.Digest); err != nil {
		t.Fatal(err)
	}
	if _, reason := d.find(nil); reason == nil || reason.Code != remit.ReasonEvidenceSigner {
		t.Errorf("for another target: %+v", reason)
	}
}

// TestStoredFormIsNoToken: nobody can hand in what is stored as if it had been verified.
func TestStoredFormIsNoToken(t *testing.T) {
	d := newDesk(t, nil)
	if _, err := d.hand(d.run(), foo.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := d.source.Add(context.Background(), d.rows[0].Envelope, "operator/mallory", d.now); err == nil {
		t.Error("taken")
	}
	for _, env := range []string{"", "{}", `{"token":"x"}`, `{"token":"x","subject":"foo"}`, `{"token":"x","token":"y","subject":"` + string(foo.Digest) + `"}`,
		`{"token":"x","subject":"` + string(foo.Digest) + `"}`} {
		if _, err := d.source.Add(context.Background(), []byte(env), "operator/mallory", d.now); err == nil {
			t.Errorf("%s is taken", env)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*citoken.Config){
		"nobody listed":  func(c *citoken.Config) { c.OwnerIDs = nil },
		"empty id":       func(c *citoken.Config) { c.OwnerIDs = []string{""} },
		"no audience":    func(c *citoken.Config) { c.Audience = "" },
		"another system": func(c *citoken.Config) { c.System = "jenkins" },
		"another bond":   func(c *citoken.Config) { c.Binds = "trust" },
		"ref":            func(c *citoken.Config) { c.ProtectedRefs = []string{"main"} },
	} {
		cfg := citoken.Config{Issuer: "https://ci.example", Audience: audience, OwnerIDs: []string{"42"}}
		change(&cfg)
		deps := citoken.Deps{Name: "jobs", Statements: &desk{}, Verify: func(context.Context, string, string) ([]byte, error) { return nil, nil }}
		if _, err := citoken.New(cfg, deps); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzClaims: whatever a token says, what is taken is a protected run of the listed owner.
func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"https://ci.example","jti":"1","iat":1,"exp":2,"repository_owner_id":"42","repository_id":"1","event_name":"push","ref_protected":"true"}`))
	f.Add([]byte(`{"jti":1}`))
	f.Fuzz(func(t *testing.T, claims []byte) {
		s, err := citoken.New(citoken.Config{Issuer: "https://ci.example", Audience: audience, OwnerIDs: []string{"42"}},
			citoken.Deps{Name: "jobs", Statements: &desk{}, Verify: func(context.Context, string, string) ([]byte, error) { return claims, nil }})
		if err != nil {
			t.Fatal(err)
		}
		added, err := s.Add(context.Background(), []byte(`{"token":"x","subject":"`+string(foo.Digest)+`"}`), "operator/ci", time.Now())
		if err == nil && (added.Fact.Fields["repository_owner_id"] != "42" || added.Fact.Fields["ref_protected"] != "true" || added.Once.JTI == "") {
			t.Fatalf("%s: %+v", claims, added)
		}
	})
}
