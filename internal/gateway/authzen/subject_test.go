// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"net/http"
	"strings"
	"testing"

	"remit"
	"remit/internal/gateway/gatewaytest"
)

// TestWhoMaySpeakForWhom is S6: nobody speaks for another without enrolment and proof. Every refusal reaches the line, which
// records it.
func TestWhoMaySpeakForWhom(t *testing.T) {
	f := newFixture(t, allow)
	token := func(path string, audience ...string) string {
		return `,"properties":{"token":"` + f.JWT(f.ID(path), audience...) + `"}`
	}
	used := token("/agent/deploy", base)
	foreign := gatewaytest.New(t, "company.com", base)
	for _, c := range []struct {
		name, caller, subject, action, more string
		want                                remit.ReasonCode
	}{
		{"agent for itself", "/agent/deploy", "spiffe://company.com/agent/deploy", "kubernetes.apply", "", ""},
		{"agent for another", "/agent/other", "spiffe://company.com/agent/deploy", "kubernetes.apply", "", remit.ReasonNotEnrolled},
		{"agent with another's token", "/agent/other", "spiffe://company.com/agent/deploy", "kubernetes.apply", token("/agent/deploy", base), remit.ReasonNotEnrolled},
		{"prefix of a name", "/agent/deploy", "spiffe://company.com/agent/deploy-evil", "kubernetes.apply", "", remit.ReasonNotEnrolled},
		{"capital letters", "/agent/deploy", "spiffe://COMPANY.com/agent/deploy", "kubernetes.apply", "", remit.ReasonUnknownAgent},
		{"dots", "/agent/deploy", "spiffe://company.com/agent/x/../deploy", "kubernetes.apply", "", remit.ReasonUnknownAgent},
		{"asserting point", "/pep/gate", "spiffe://company.com/agent/deploy", "kubernetes.apply", "", ""},
		{"asserting point, family of actions", "/pep/gate", "spiffe://company.com/agent/deploy", "mcp.call", "", ""},
		{"asserting point, action not enrolled", "/pep/gate", "spiffe://company.com/agent/deploy", "postgres.select", "", remit.ReasonNotEnrolled},
		{"asserting point, other trust domain", "/pep/gate", "spiffe://evil.org/agent/deploy", "kubernetes.apply", "", remit.ReasonNotEnrolled},
		{"point without proof", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply", "", remit.ReasonAsserted},
		{"point with proof", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply", used, ""},
		{"point with used proof", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply", used, remit.ReasonAsserted},
		{"point with another's proof", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply", token("/agent/other", base), remit.ReasonAsserted},
		{"asserting point with a bad proof", "/pep/gate", "spiffe://company.com/agent/deploy", "kubernetes.apply", token("/agent/other", base), remit.ReasonAsserted},
		{"proof for another server", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply", token("/agent/deploy", "https://other"), remit.ReasonAsserted},
		{"proof for two servers", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply", token("/agent/deploy", base, "https://other"), remit.ReasonAsserted},
		{"proof of another authority", "/pep/plain", "spiffe://company.com/agent/deploy", "kubernetes.apply",
			`,"properties":{"token":"` + foreign.JWT(f.deploy, base) + `"}`, remit.ReasonAsserted},
		{"unknown agent", "/pep/gate", "spiffe://company.com/agent/nobody", "kubernetes.apply", "", remit.ReasonUnknownAgent},
		{"no SPIFFE ID", "/pep/gate", "alice", "kubernetes.apply", "", remit.ReasonUnknownAgent},
	} {
		kind, _, _ := strings.Cut(c.action, ".")
		body := `{"subject":{"type":"agent","id":"` + c.subject + `"` + c.more + `},"action":{"name":"` + c.action + `"},"resource":{"type":"` + kind + `","id":"x"}}`
		got := read(t, f.post(c.caller, single, body))
		f.line.last(t) // exactly one record each
		reason := remit.ReasonCode("")
		if len(got.Context.Reasons) > 0 {
			reason = got.Context.Reasons[0].Code
		}
		if *got.Decision != (c.want == "") || reason != c.want {
			t.Errorf("%s: decision %v for %q, want %q", c.name, *got.Decision, reason, c.want)
		}
	}
}

func TestSubjectTypes(t *testing.T) {
	f := newFixture(t, allow)
	for kind, want := range map[string]bool{"agent": true, "tool": true, "workload": true, "spiffe": true, "user": false, "Agent": false} {
		got := read(t, f.post("/pep/gate", single, strings.Replace(sound, `"type":"agent"`, `"type":"`+kind+`"`, 1)))
		if *got.Decision != want {
			t.Errorf("%s: %v", kind, *got.Decision)
		}
	}
	got := read(t, f.post("/pep/gate", single, strings.Replace(sound, `"type":"kubernetes"`, `"type":"postgres"`, 1)))
	if *got.Decision || got.Context.Reasons[0].Of != "resource.type" {
		t.Errorf("a resource of another kind than the action's: %+v", got)
	}
}

// An asserted subject has level none, whatever the enforcement point's is; a proven one its own.
func TestLevelIsTheSubjects(t *testing.T) {
	f := newFixture(t, allow)
	read(t, f.post("/pep/gate", single, sound))
	if req := f.line.last(t); req.Caller.Level != remit.LevelNone || req.Caller.Workload != nil {
		t.Errorf("asserted: level %s", req.Caller.Level)
	}
	body := strings.Replace(sound, `agent/deploy"`, `agent/deploy","properties":{"token":"`+f.JWT(f.deploy, base)+`"}`, 1)
	read(t, f.post("/pep/plain", single, body))
	req := f.line.last(t)
	if req.Caller.Level != remit.LevelUser || req.Caller.ID != f.ID("/pep/plain") {
		t.Errorf("proven: level %s of %s", req.Caller.Level, req.Caller)
	}
	if left := req.Caller.Expires.Sub(req.At); left > 61e9 {
		t.Errorf("the caller's end is not the token's: %s", left)
	}
}

// TestCallersOwnStanding: 401 and 403 are about the caller alone, and write nothing (S35).
func TestCallersOwnStanding(t *testing.T) {
	f := newFixture(t, allow)
	for caller, want := range map[string]int{"": http.StatusUnauthorized, "/nobody": http.StatusForbidden} {
		if w := f.post(caller, single, sound); w.Code != want {
			t.Errorf("%q: %d", caller, w.Code)
		}
	}
	other := gatewaytest.New(t, "company.com", "")
	w := f.post("", single, sound, func(r *http.Request) { r.TLS = gatewaytest.State(other.SVID(f.deploy)) })
	if w.Code != http.StatusUnauthorized {
		t.Errorf("another authority: %d", w.Code)
	}
	w = f.post("", single, sound, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+f.JWT(f.deploy, base)) })
	if w.Code != http.StatusUnauthorized {
		t.Errorf("a JWT-SVID as bearer: %d", w.Code)
	}
	if len(f.line.asked) != 0 {
		t.Errorf("the line was asked %d times", len(f.line.asked))
	}
}

// TestRunEntersOnlyByItsToken is S10 and pitfall 3: naming a run, scan or ticket in context proves nothing.
func TestRunEntersOnlyByItsToken(t *testing.T) {
	f := newFixture(t, allow)
	run := remit.NewRunID()
	mine := gatewaytest.Thumbprint(f.certs["/agent/deploy"].TLS.PeerCertificates[0])
	f.Runs["rt"] = gatewaytest.Run{ID: run, Agent: f.deploy, Holder: remit.Holder{Thumbprint: mine}}
	seen := strings.Replace(sound, `agent/deploy"`, `agent/deploy","properties":{"x5t#S256":"`+mine+`"}`, 1)
	for _, c := range []struct {
		name, caller, body, context string
		run                         remit.RunID
		want                        remit.ReasonCode
	}{
		{"no token", "/agent/deploy", sound, `{}`, "", ""},
		{"a run only named", "/agent/deploy", sound, `{"run":"` + string(run) + `","scan_id":"scan-789"}`, "", ""},
		{"holder", "/agent/deploy", sound, `{"run_token":"rt"}`, run, ""},
		{"holder, run stated", "/agent/deploy", sound, `{"run_token":"rt","run":"` + string(run) + `"}`, run, ""},
		{"holder, other run stated", "/agent/deploy", sound, `{"run_token":"rt","run":"` + string(remit.NewRunID()) + `"}`, "", remit.ReasonRunMismatch},
		{"unknown token", "/agent/deploy", sound, `{"run_token":"xx"}`, "", remit.ReasonRunToken},
		{"another agent's", "/agent/other", strings.Replace(sound, "agent/deploy", "agent/other", 1), `{"run_token":"rt"}`, "", remit.ReasonRunToken},
		{"asserted without certificate", "/pep/gate", sound, `{"run_token":"rt"}`, "", remit.ReasonRunToken},
		{"asserted with the certificate that the point saw", "/pep/gate", seen, `{"run_token":"rt"}`, run, ""},
		{"thumbprint from a point that may not assert", "/pep/plain",
			strings.Replace(seen, `"properties":{"x5t`, `"properties":{"token":"`+f.JWT(f.deploy, base)+`","x5t`, 1), `{"run_token":"rt"}`, "", remit.ReasonRunToken},
	} {
		got := read(t, f.post(c.caller, single, strings.Replace(c.body, `{"subject"`, `{"context":`+c.context+`,"subject"`, 1)))
		req := f.line.last(t)
		reason := remit.ReasonCode("")
		if len(got.Context.Reasons) > 0 {
			reason = got.Context.Reasons[0].Code
		}
		if req.Run != c.run || reason != c.want || *got.Decision != (c.want == "") {
			t.Errorf("%s: run %q, reason %q, want %q, %q", c.name, req.Run, reason, c.run, c.want)
		}
		if _, leaked := req.Args["scan_id"]; leaked {
			t.Errorf("%s: context became an argument", c.name)
		}
	}
	w := f.post("/agent/deploy", single, sound, func(r *http.Request) { r.Header.Set("Authorization", "Bearer rt") })
	if read(t, w); f.line.last(t).Run != "" {
		t.Error("pitfall 6: a run token in Authorization counted")
	}
}

func TestContextReachesTheLine(t *testing.T) {
	f := newFixture(t, allow)
	under := remit.NewDecisionID()
	read(t, f.post("/agent/deploy", single, strings.Replace(sound, `{"subject"`, `{"context":{"stage":"s","permission":"p","under":"`+string(under)+`"},"subject"`, 1)))
	if req := f.line.last(t); req.Stage != "s" || req.Permission != "p" || req.Under != under || req.Fill {
		t.Errorf("%+v", req)
	}
}
