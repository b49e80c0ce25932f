// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/evidence/evidencetest"
	"remit/internal/gateway/login"
	"remit/internal/store"
)

const releases = `---
kind: EvidenceSource
name: jobs
type: ci-token
issuer: ISSUER
audience: https://remit.company.com
owner_ids: ["42"]
ca: CAFILE
---
kind: Workflow
name: release
parameters: {app: {type: name}, image: {type: image}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: only
  end: {by: [operator/ci]}
  may:
  - {name: release, who: agent/deploy, action: memory.write, target: cluster, where: {app: $app}, ttl: 5m,
     evidence: [{ci: {of: $image, source: jobs, repository: company/foo, repository_id: "4711", repository_owner_id: "42", environment: production,
       ref: refs/heads/main, ref_protected: "true", workflow: .github/workflows/release.yml, event: push, within: 1h}}]}
`

// ciSystem is a running server with a CI system beside it.
type ciSystem struct {
	*fixture
	issuer *evidencetest.Issuer
	digest remit.Digest
}

func setUpCI(t *testing.T, edit ...string) *ciSystem {
	t.Helper()
	issuer, err := evidencetest.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	ca := filepath.Join(t.TempDir(), "ci.pem")
	if err := os.WriteFile(ca, issuer.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	names := strings.NewReplacer("ISSUER", issuer.URL, "CAFILE", ca)
	for i := range edit {
		edit[i] = names.Replace(edit[i])
	}
	c := &ciSystem{setUp(t, edit...), issuer, remit.DigestOf([]byte("foo"))}
	c.files += names.Replace(releases)
	c.write(c.files)
	c.must("/v1/apply", nil, nil)
	return c
}

func (c *ciSystem) token(claims map[string]any) string {
	c.t.Helper()
	token, err := c.issuer.Token(claims, nil, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

func (c *ciSystem) job() map[string]any {
	return c.issuer.GitHubRun("https://remit.company.com/"+string(c.digest), time.Now())
}

func (c *ciSystem) add(token string) (e remit.Evidence, err error) {
	c.t.Helper()
	body, err := json.Marshal(map[string]string{"token": token, "subject": string(c.digest)})
	if err != nil {
		c.t.Fatal(err)
	}
	return e, c.admin.Post(c.t.Context(), "/v1/evidence", api.AddEvidence{Source: "jobs", Envelope: body}, &e)
}

func (c *ciSystem) releasing() *workload {
	c.t.Helper()
	var r remit.Run
	c.must("/v1/runs", api.StartRun{Workflow: "release", Params: map[string]string{"app": "foo", "image": "registry.company.com/foo@" + string(c.digest)}}, &r)
	return c.agent("agent/deploy", c.shared()).enter(r)
}

// TestCITokenIsEvidence: S16. A job's token carries a grant, by the keys that workflows have for ci; another run's does not.
func TestCITokenIsEvidence(t *testing.T) {
	c := setUpCI(t)
	w := c.releasing()
	if got := w.ask("release"); got.Grant != "" || got.code() != string(remit.ReasonEvidenceMissing) {
		t.Errorf("without evidence: %+v", got)
	}
	for claim, value := range map[string]any{"repository_id": "4712", "environment": "staging", "ref": "refs/heads/dev",
		"workflow_ref": "company/foo/.github/workflows/evil.yml@refs/heads/main", "event_name": "workflow_dispatch", "repository": "company/bar"} {
		other := c.job()
		other[claim] = value
		if _, err := c.add(c.token(other)); err != nil {
			t.Fatal(err)
		}
		if got := w.ask("release"); got.Grant != "" || got.code() != string(remit.ReasonEvidenceField) {
			t.Errorf("%s %v: %+v", claim, value, got)
		}
	}
	e, err := c.add(c.token(c.job()))
	if err != nil || e.Kind != remit.EvidenceCI || e.Fields["repository_id"] != "4711" {
		t.Fatalf("%+v %v", e, err)
	}
	if got := w.ask("release"); got.Grant == "" {
		t.Errorf("with evidence: %+v", got)
	}
	if kept, ok := c.srv.store.Statement(e.ID); !ok || !kept.Added.Before(time.Now().Add(time.Second)) {
		t.Errorf("not stored: %+v", kept)
	}
	c.restart()
	if got := c.releasing().ask("release"); got.Grant == "" {
		t.Errorf("after a restart: %+v", got)
	}
}

const releaseJob = `jobs:
- name: release
  issuer: ISSUER
  audience: https://remit.company.com
  ca: CAFILE
  claims: [{claim: repository_id, is: "4711"}, {claim: environment, is: production}]
`

// TestJobStartsRun: S9. A CI job logs in by its token from elsewhere, vouches for what it built and starts the run that deploys it; it is
// nobody else, and does nothing that only roles allow.
func TestJobStartsRun(t *testing.T) {
	c := setUpCI(t, "# Who manages", releaseJob+"# Who manages")
	c.write(strings.Replace(c.files, "parameters: {app: {type: name}, image: {type: image}}\nstart: {by: [operator/ci]", "parameters: {app: {type: name}, image: {type: image}}\nstart: {by: [operator/release]", 1))
	c.must("/v1/apply", nil, nil)
	p, k := &people{fixture: c.fixture}, key(t)
	var g login.Granted
	if err := p.remote(k, "").Post(t.Context(), "/login/job", login.JobLogin{Job: "release", Token: c.token(c.issuer.GitHubRun("https://remit.company.com", time.Now()))}, &g); err != nil {
		t.Fatal(err)
	}
	job := p.remote(k, g.Token)
	body, err := json.Marshal(map[string]string{"token": c.token(c.job()), "subject": string(c.digest)})
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Post(t.Context(), "/v1/evidence", api.AddEvidence{Source: "jobs", Envelope: body}, nil); err != nil {
		t.Fatal(err)
	}
	in := api.StartRun{Workflow: "release", Params: map[string]string{"app": "foo", "image": "registry.company.com/foo@" + string(c.digest)}}
	if code := c.post("/v1/runs", in, nil); code != remit.CodeForbidden {
		t.Errorf("somebody else starts it: %q", code)
	}
	var r remit.Run
	if err := job.Post(t.Context(), "/v1/runs", in, &r); err != nil || r.Starter != "operator/release" {
		t.Fatalf("%+v %v", r, err)
	}
	w := c.agent("agent/deploy", c.shared())
	var token api.Token
	if err := job.Post(t.Context(), "/v1/runs/"+string(r.ID)+"/token", api.TokenRequest{Agent: "agent/deploy", Thumbprint: w.thumbprint()}, &token); err != nil {
		t.Fatal(err)
	}
	w.token = token.Token
	if got := w.ask("release"); got.Grant == "" {
		t.Errorf("%+v", got)
	}
	for _, path := range []string{"/v1/apply", "/v1/agents/agent/deploy/suspend"} {
		if err := job.Post(t.Context(), path, nil, nil); remit.CodeOf(err) != remit.CodeForbidden {
			t.Errorf("%s: %v", path, err)
		}
	}
	c.restart()
	if err := p.remote(k, g.Token).Get(t.Context(), "/v1/status", nil, nil); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := p.remote(key(t), g.Token).Get(t.Context(), "/v1/status", nil, nil); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("with another key: %v", err)
	}
}

// TestPeoplesQuota: S35. Who manages from elsewhere asks no more than remit.yaml lets one person.
func TestPeoplesQuota(t *testing.T) {
	c := setUpCI(t, "# Who manages", releaseJob+"quotas: {people: {rate: 1, burst: 3}}\n# Who manages")
	p, k := &people{fixture: c.fixture}, key(t)
	var g login.Granted
	if err := p.remote(k, "").Post(t.Context(), "/login/job", login.JobLogin{Job: "release", Token: c.token(c.issuer.GitHubRun("https://remit.company.com", time.Now()))}, &g); err != nil {
		t.Fatal(err)
	}
	job := p.remote(k, g.Token)
	for range 30 {
		if err := job.Get(t.Context(), "/v1/status", nil, nil); err != nil {
			if remit.CodeOf(err) != remit.CodeExhausted {
				t.Errorf("%v", err)
			}
			return
		}
	}
	t.Error("thirty calls, and the quota is three")
}

// TestCITokenCountsOnce: a token that comes again is refused, also after a restart, and leaves nothing behind.
func TestCITokenCountsOnce(t *testing.T) {
	c := setUpCI(t)
	token := c.token(c.job())
	if _, err := c.add(token); err != nil {
		t.Fatal(err)
	}
	for _, again := range []func(){func() {}, c.restart} {
		again()
		if _, err := c.add(token); remit.CodeOf(err) != remit.CodeConflict {
			t.Errorf("again: %v", err)
		}
	}
	entries, _, err := c.srv.store.Events(store.EventFilter{Kind: remit.EventEvidence}, 0, 1000)
	if err != nil || len(entries) != 1 || len(c.srv.store.Statements("jobs", remit.EvidenceCI, c.digest, "", 100)) != 1 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	pull := c.job()
	pull["event_name"] = "pull_request"
	if _, err := c.add(c.token(pull)); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("a pull request: %v", err)
	}
	if n := len(c.srv.store.Statements("jobs", remit.EvidenceCI, c.digest, "", 100)); n != 1 {
		t.Errorf("%d statements after a refusal", n)
	}
}
