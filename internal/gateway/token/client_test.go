// SPDX-License-Identifier: Apache-2.0

package token_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"remit"
	"remit/internal/gateway/gatewaytest"
)

const (
	spiffeAssertion = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
	exchangeType    = "urn:ietf:params:oauth:grant-type:token-exchange"
)

func TestClientAuthentication(t *testing.T) {
	f := newFixture(t, narrowed)
	id, otherID := "spiffe://company.com/agent/deploy", "spiffe://company.com/agent/other"
	fresh := func(audience ...string) string { return f.JWT(f.deploy, audience...) }
	used := fresh(issuer)
	foreign := gatewaytest.New(t, "company.com", issuer)
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(fresh(issuer), ".")[1] + "."
	for _, c := range []struct {
		name, caller, id, kind, assertion, want string
	}{
		{"certificate", "/agent/deploy", id, "", "", ""},
		{"certificate without client_id", "/agent/deploy", "", "", "", "invalid_client"},
		{"certificate of another", "/agent/other", id, "", "", "invalid_client"},
		{"client_id longer", "/agent/deploy", id + "-evil", "", "", "invalid_client"},
		{"client_id a prefix", "/agent/deploy", "spiffe://company.com/agent", "", "", "invalid_client"},
		{"client_id in capitals", "/agent/deploy", "SPIFFE://company.com/agent/deploy", "", "", "invalid_client"},
		{"nothing", "", id, "", "", "invalid_client"},
		{"assertion", "", "", spiffeAssertion, used, ""},
		{"assertion again", "", "", spiffeAssertion, used, "invalid_client"},
		{"assertion with client_id", "", id, spiffeAssertion, fresh(issuer), ""},
		{"assertion with another client_id", "", otherID, spiffeAssertion, fresh(issuer), "invalid_client"},
		{"assertion of jwt-bearer type", "", "", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", fresh(issuer), "invalid_client"},
		{"assertion without type", "", "", "", fresh(issuer), "invalid_client"},
		{"type without assertion", "/agent/deploy", id, spiffeAssertion, "", "invalid_request"},
		{"audience is the token endpoint", "", "", spiffeAssertion, fresh(issuer + "/oauth2/token"), "invalid_client"},
		{"two audiences", "", "", spiffeAssertion, fresh(issuer, "https://other"), "invalid_client"},
		{"another authority", "", "", spiffeAssertion, foreign.JWT(f.deploy, issuer), "invalid_client"},
		{"unsigned", "", "", spiffeAssertion, unsigned, "invalid_client"},
		{"rubbish", "", "", spiffeAssertion, "a.b.c", "invalid_client"},
		{"both", "/agent/deploy", id, spiffeAssertion, fresh(issuer), ""},
		{"both, without client_id", "/agent/deploy", "", spiffeAssertion, fresh(issuer), ""},
		{"both, certificate of another", "/agent/other", id, spiffeAssertion, fresh(issuer), "invalid_client"},
		{"both, certificate of another, no client_id", "/agent/other", "", spiffeAssertion, fresh(issuer), "invalid_client"},
		{"both, assertion of another", "/agent/deploy", id, spiffeAssertion, f.JWT(f.ID("/agent/other"), issuer), "invalid_client"},
	} {
		body := form("client_id", c.id, "client_assertion_type", c.kind, "client_assertion", c.assertion).Encode()
		w := f.post(c.caller, "/oauth2/token", body, func(r *http.Request) { r.Header.Set("Txn-Token", "any") })
		a := read(t, w)
		if a.Error != c.want || (c.want == "invalid_client") != (w.Code == http.StatusUnauthorized) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		if asked := len(f.line.asked); asked != 0 && c.want != "" {
			t.Errorf("%s: the line was asked", c.name)
		}
		f.line.asked = nil
	}
	other := gatewaytest.New(t, "company.com", issuer)
	w := f.post("", "/oauth2/token", form().Encode(), func(r *http.Request) { r.TLS = gatewaytest.State(other.SVID(f.deploy)) })
	if a := read(t, w); a.Error != "invalid_client" {
		t.Errorf("certificate of another authority: %s", w.Body)
	}
}

// TestRunToken is S10: a stolen run token is nothing in another's hand, and each refusal is recorded.
func TestRunToken(t *testing.T) {
	f := newFixture(t, narrowed)
	entryWith := func(more string) string {
		return strings.Replace(entry, `"namespace"`, more+`,"namespace"`, 1)
	}
	other := "spiffe://company.com/agent/other"
	for _, c := range []struct {
		name, caller, id, txn, details string
		want                           remit.ReasonCode
	}{
		{"holder", "/agent/deploy", "", "rt", entry, ""},
		{"run stated", "/agent/deploy", "", "rt", entryWith(`"run":"` + string(f.run) + `"`), ""},
		{"another run stated", "/agent/deploy", "", "rt", entryWith(`"run":"` + string(remit.NewRunID()) + `"`), remit.ReasonRunMismatch},
		{"run stated as nonsense", "/agent/deploy", "", "rt", entryWith(`"run":"x"`), remit.ReasonRunMismatch},
		{"no token", "/agent/deploy", "", "", entry, remit.ReasonNoRun},
		{"run only stated", "/agent/deploy", "", "", entryWith(`"run":"` + string(f.run) + `"`), remit.ReasonNoRun},
		{"unknown token", "/agent/deploy", "", "xx", entry, remit.ReasonRunToken},
		{"another agent's token", "/agent/other", other, "rt", entry, remit.ReasonRunToken},
	} {
		body := form("authorization_details", c.details)
		if c.id != "" {
			body.Set("client_id", c.id)
		}
		w := f.post(c.caller, "/oauth2/token", body.Encode(), func(r *http.Request) {
			if r.Header.Set("Txn-Token", c.txn); c.txn == "" {
				r.Header.Del("Txn-Token")
			}
		})
		a := read(t, w)
		f.line.last(t)
		if c.want == "" != (a.Error == "") || c.want != "" && (a.Error != "access_denied" || a.Reasons[0].Code != c.want) {
			t.Errorf("%s: %s", c.name, w.Body)
		}
	}
	// The certificate's token in the hand of a process that has only the agent's JWT-SVID.
	w := f.post("", "/oauth2/token", form("client_assertion_type", spiffeAssertion, "client_assertion", f.JWT(f.deploy, issuer)).Encode())
	if a := read(t, w); a.Error != "access_denied" || a.Reasons[0].Code != remit.ReasonRunToken {
		t.Errorf("token bound to a certificate, without it: %s", w.Body)
	}
}

func TestUnknownWorkloadIsDeniedOnRecord(t *testing.T) {
	f := newFixture(t, narrowed)
	w := f.post("/nobody", "/oauth2/token", form("client_id", "spiffe://company.com/nobody").Encode(), func(r *http.Request) { r.Header.Del("Txn-Token") })
	if a := read(t, w); a.Error != "access_denied" || a.Reasons[0].Code != remit.ReasonUnknownAgent {
		t.Errorf("%s", w.Body)
	}
	if req := f.line.last(t); req.Agent != "" || req.Caller.ID != f.ID("/nobody") {
		t.Errorf("%+v", req)
	}
}

// Pitfall 14: revocation is 200 for what is unknown, and ends nothing of anybody else.
func TestRevoke(t *testing.T) {
	f := newFixture(t, narrowed)
	mine, theirs, byToken := remit.NewGrantID(), remit.NewGrantID(), remit.NewGrantID()
	f.grants.all[mine] = remit.Grant{ID: mine, Agent: "agent/deploy"}
	f.grants.all[byToken] = remit.Grant{ID: byToken, Agent: "agent/deploy"}
	f.grants.all[theirs] = remit.Grant{ID: theirs, Agent: "agent/other"}
	f.grants.byJTI["JTI=j-1"], f.grants.byJTI["JTI=j-2"] = byToken, theirs
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
	}
	for _, c := range []struct {
		name, token string
		status      int
		ends        remit.GrantID
	}{
		{"own", string(mine), 200, mine},
		{"own again", string(mine), 200, mine},
		{"own, by its token", jwt(`{"jti":"j-1","sub":"x"}`), 200, byToken},
		{"another's", string(theirs), 400, ""},
		{"another's, by its token", jwt(`{"jti":"j-2"}`), 400, ""},
		{"unknown grant", string(remit.NewGrantID()), 200, ""},
		{"unknown token", jwt(`{"jti":"j-9"}`), 200, ""},
		{"token without jti", jwt(`{}`), 200, ""},
		{"jti twice", jwt(`{"jti":"j-9","jti":"j-1"}`), 200, ""},
		{"rubbish", "abc", 200, ""},
		{"nothing", "", 400, ""},
	} {
		f.grants.ended = nil
		w := f.post("/agent/deploy", "/oauth2/revoke", form("token", c.token, "token_type_hint", "urn:remit:grant").Encode())
		got := remit.GrantID("")
		if len(f.grants.ended) > 0 {
			got = f.grants.ended[0]
		}
		if w.Code != c.status || got != c.ends || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d, ended %q: %s", c.name, w.Code, got, w.Body)
		}
	}
	f.grants.ended = nil
	if w := f.post("", "/oauth2/revoke", form("token", string(mine)).Encode()); w.Code != http.StatusUnauthorized || f.grants.ended != nil {
		t.Errorf("nobody revoked: %d", w.Code)
	}
	if w := f.post("/nobody", "/oauth2/revoke", form("client_id", "spiffe://company.com/nobody", "token", string(mine)).Encode()); w.Code != http.StatusBadRequest || f.grants.ended != nil {
		t.Errorf("an unknown workload revoked: %d", w.Code)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	f.post("/agent/deploy", "/oauth2/revoke", form("token", string(mine)).Encode(), func(r *http.Request) { *r = *r.WithContext(gone) })
	if f.grants.ended == nil {
		t.Error("a client that went away kept its grant alive")
	}
	f.grants.err = &remit.Error{Code: remit.CodeUnavailable, Msg: "cluster"}
	w := f.post("/agent/deploy", "/oauth2/revoke", form("token", string(mine)).Encode())
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("a target that does not answer: %d %s", w.Code, w.Body)
	}
}
