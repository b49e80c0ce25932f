// SPDX-License-Identifier: Apache-2.0

package login

import (
	"maps"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/evidencetest"
	"remit/internal/identity/federation"
)

const jobAudience = "https://remit.company.com/jobs"

type jobs struct {
	*fixture
	issuer *evidencetest.Issuer
}

func newJobs(t *testing.T) *jobs {
	t.Helper()
	issuer, err := evidencetest.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	f := &jobs{newHandler(t), issuer}
	verifier, err := federation.NewIssuer(issuer.URL, issuer.Client(), func() time.Time { return f.now })
	if err != nil {
		t.Fatal(err)
	}
	f.cfg.Jobs = []Job{{Name: "operator/release", Issuer: issuer.URL, Audience: jobAudience, Life: 10 * time.Minute, Verify: verifier.Verify,
		Claims: map[string]string{"repository_id": "4711", "environment": "production"}}}
	return f
}

func (f *jobs) come(change map[string]any) (Granted, string, error) {
	f.t.Helper()
	claims := f.issuer.GitHubRun(jobAudience, f.now)
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	token, err := f.issuer.Token(claims, nil, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	g, err := f.job(f.t.Context(), JobLogin{"release", token}, mine)
	return g, token, err
}

func TestJobLogsIn(t *testing.T) {
	f := newJobs(t)
	g, token, err := f.come(nil)
	if err != nil || g.Person != "operator/release" || !g.Expires.Equal(f.now.Add(10*time.Minute)) {
		t.Fatalf("%+v %v", g, err)
	}
	who, err := f.Session(g.Token, mine, f.now)
	if err != nil || who.Person != "operator/release" || len(who.Roles) != 0 || who.HasRole("auditor") {
		t.Errorf("%+v %v", who, err)
	}
	if _, err := f.Session(g.Token, theirs, f.now); err == nil {
		t.Error("the session of another key")
	}
	if _, err := f.Session(g.Token, mine, g.Expires); err == nil {
		t.Error("a session that is over")
	}
	if e := string(f.store.events[0].Data); !strings.Contains(e, `"run_id":"1001"`) || strings.Contains(e, token) {
		t.Errorf("on record: %s", e)
	}
	if _, err := f.job(t.Context(), JobLogin{"release", token}, theirs); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("the token, a second time: %v", err)
	}
	if len(f.store.sessions) != 1 {
		t.Errorf("%d sessions", len(f.store.sessions))
	}
}

func TestJobsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change map[string]any
		why    string
	}{
		"another repository of the name": {map[string]any{"repository_id": "9"}, "repository_id"},
		"a list with the id":             {map[string]any{"repository_id": []string{"4711"}}, "repository_id"},
		"another environment":            {map[string]any{"environment": "staging"}, "environment"},
		"no environment":                 {map[string]any{"environment": nil}, "environment"},
		"pull request":                   {map[string]any{"event_name": "pull_request_target"}, "never logs in"},
		"merge request":                  {map[string]any{"pipeline_source": "merge_request_event"}, "never logs in"},
		"unprotected ref":                {map[string]any{"ref_protected": "false"}, "not protected"},
		"no jti":                         {map[string]any{"jti": nil}, "no jti"},
		"token for evidence":             {map[string]any{"aud": jobAudience + "/sha256:00"}, "audience"},
		"another issuer":                 {map[string]any{"iss": "https://elsewhere.example"}, "issuer"},
	} {
		f := newJobs(t)
		if _, _, err := f.come(c.change); err == nil || !strings.Contains(err.Error(), c.why) || len(f.store.sessions) > 0 || len(f.store.events) > 0 {
			t.Errorf("%s: %v, %d sessions", name, err, len(f.store.sessions))
		}
	}
	f := newJobs(t)
	if _, err := f.job(t.Context(), JobLogin{"deploy", "x"}, mine); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("no such job: %v", err)
	}
}

func TestJobsAreOfTodaysFile(t *testing.T) {
	for name, change := range map[string]func(*Job){
		"gone":           func(j *Job) { j.Name = "operator/other" },
		"another issuer": func(j *Job) { j.Issuer = "https://elsewhere.example" },
		"another claim":  func(j *Job) { j.Claims = map[string]string{"repository_id": "4711", "ref": "refs/heads/main"} },
		"another value":  func(j *Job) { j.Claims = map[string]string{"repository_id": "4712"} },
	} {
		f := newJobs(t)
		g, _, err := f.come(nil)
		if err != nil {
			t.Fatal(err)
		}
		change(&f.cfg.Jobs[0])
		if who, err := f.Session(g.Token, mine, f.now); err == nil {
			t.Errorf("%s: %+v", name, who)
		}
	}
}

// TestJobsNameIsNoPersons: nobody who logs in at the people's provider is given the name of a job, nor keeps one.
func TestJobsNameIsNoPersons(t *testing.T) {
	f := newJobs(t)
	if _, err := f.session("release", "s-mallory", "admins"); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("%v", err)
	}
	g := f.must("later", "s-later")
	f.cfg.Jobs[0].Name = "operator/later"
	if _, err := f.Session(g.Token, mine, f.now); err == nil {
		t.Error("a person's session under the name of a job")
	}
}
