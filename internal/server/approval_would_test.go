// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/store"
)

// ruled has an organisation's rule file with the text.
func (d *refundDesk) ruled(text string) {
	d.t.Helper()
	rules := filepath.Join(d.dir, dirConfig, "rules")
	if err := os.MkdirAll(rules, 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rules, "would.rego"), []byte("package remit.rules\n\n"+text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if !strings.Contains(d.files, "rules/would.rego") {
		d.files += "---\nkind: Rule\nname: would\nfile: rules/would.rego\n"
	}
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
}

func (d *refundDesk) seen(name string, id remit.HoldID) (v api.Approval) {
	d.t.Helper()
	if err := d.as(name).Get(d.t.Context(), "/v1/approvals/"+string(id), nil, &v); err != nil {
		d.t.Fatal(err)
	}
	return v
}

// TestApproversSeeWhatWouldBeAllowed: who approves is shown for how long, within which limits, with which obligations and by what the
// target is bound; and that is what the agent gets then, no more. Looking gives nothing.
func TestApproversSeeWhatWouldBeAllowed(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	if g := d.pay(w, "900", ""); g.Error != "authorization_pending" {
		t.Fatalf("%+v", g)
	}
	h := d.newest()
	before := len(d.srv.store.LiveGrants(store.GrantFilter{}))
	x := d.seen("bob", h.ID).Would
	if x == nil || x.Not != "" || x.Seconds != 300 || !x.Credential || time.Until(x.Until) > 5*time.Minute+time.Second || x.WorstCase != 120 {
		t.Fatalf("%+v", x)
	}
	if !slices.Contains(x.Bounds, "customer 555") || !slices.Equal(x.NotBounded, []string{`the time of day\u{202e}`}) {
		t.Errorf("%+v", x)
	}
	if rows, err := d.srv.store.ListHeld(store.HeldFilter{}, 2, ""); err != nil || len(rows) != 1 || rows[0].State != remit.HeldPending {
		t.Errorf("after looking: %v %+v", err, rows)
	}
	if n := len(d.srv.store.LiveGrants(store.GrantFilter{})); n != before {
		t.Errorf("looking left %d grants, before %d", n, before)
	}
	if e, ok, err := d.srv.store.Decision(h.Decision); err != nil || !ok {
		t.Fatal(err)
	} else if held, err := decisionOf(e); err != nil || held.Effect != remit.Hold || held.TTL != 0 || held.Limits != nil || held.Obligations != nil {
		t.Errorf("a hold has authority: %v %+v", err, held)
	}
	if _, err := d.answer("bob", "approve", h.ID); err != nil {
		t.Fatal(err)
	}
	if x := d.seen("bob", h.ID).Would; x == nil || x.Seconds != 300 {
		t.Errorf("approved, not used: %+v", x)
	}
	g := d.pay(w, "900", "")
	grant, ok := d.srv.store.Grant(g.Grant)
	if !ok || grant.Expires.Sub(grant.Issued) > 5*time.Minute || !slices.Contains(grant.Bounds, "customer 555") || grant.WorstCase != 2*time.Minute {
		t.Errorf("given: %+v", grant)
	}
	if x := d.seen("bob", h.ID).Would; x != nil {
		t.Errorf("used: %+v", x)
	}
}

// TestApproversSeeRules: what the organisation's rules narrow now is what is shown, an approval of theirs included, and a request that
// they deny meanwhile is said to be denied still.
func TestApproversSeeRules(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	d.pay(w, "900", "")
	h := d.newest()
	d.ruled("obligations contains \"mask=iban\\u202e\"\n")
	x := d.seen("bob", h.ID).Would
	if x == nil || !slices.Equal(x.Obligations, []string{`mask=iban\u{202e}`}) {
		t.Errorf("an obligation: %+v", x)
	}
	d.ruled("ttl := \"2m\"\nrows := 7\ntier := \"remote\"\nhold contains \"big\"\napprovers contains \"sales\"\n")
	if x = d.seen("bob", h.ID).Would; x == nil || x.Seconds != 120 || x.Limits["rows"] != 7 {
		t.Errorf("narrowed: %+v", x)
	}
	d.ruled("deny contains \"closed\"\n")
	if x = d.seen("bob", h.ID).Would; x == nil || !strings.Contains(x.Not, "organisation_rule") || x.Credential || x.Bounds != nil {
		t.Errorf("denied meanwhile: %+v", x)
	}
}

// TestSensitiveBoundsAreNotShown: what the target is bound to names values; with a sensitive one it is not shown, and said to be there.
func TestSensitiveBoundsAreNotShown(t *testing.T) {
	d := setUpApprovals(t, 1)
	d.files = strings.Replace(d.files, "{customer: {type: integer}}", "{customer: {type: integer, sensitive: true}}", 1)
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	d.pay(w, "900", "")
	x := d.seen("bob", d.newest().ID).Would
	if x == nil || !x.Hidden || x.Seconds != 300 || x.Bounds != nil || x.NotBounded != nil {
		t.Errorf("%+v", x)
	}
}

// TestLastApprovedIsFoundBehindOthers: what others had approved since does not hide the last request of this permission.
func TestLastApprovedIsFoundBehindOthers(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	d.pay(w, "900", "")
	first := d.newest()
	if _, err := d.answer("bob", "approve", first.ID); err != nil {
		t.Fatal(err)
	}
	if g := d.pay(w, "900", ""); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	var change remit.Change
	for range usedPage + 50 {
		other := first
		other.ID, other.Digest, other.Run = remit.NewHoldID(), remit.DigestOf([]byte(remit.NewHoldID())), remit.NewRunID() // a run holds only so many
		other.Agent, other.State = "agent/other", remit.HeldUsed
		change.Rows = append(change.Rows, other)
	}
	if _, err := d.srv.store.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	d.pay(w, "950", "")
	if v := d.seen("bob", d.newest().ID); v.Last == nil || v.Last.ID != first.ID || v.Args[0].Last != "900" {
		t.Errorf("%+v %+v", v.Last, v.Args)
	}
}

// TestNobodyCouldAnswer: a workflow that asks people of a server where nobody can log in is warned about, with the next step.
func TestNobodyCouldAnswer(t *testing.T) {
	f := setUp(t)
	f.write(f.files + strings.Replace(refundStory, "PEOPLE", "1", 1))
	var out api.Applied
	f.must("/v1/apply", nil, &out)
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "refunds/refund/pay") || !strings.Contains(out.Warnings[0], "docs/people.md") {
		t.Errorf("apply: %+v", out.Warnings)
	}
	if k := f.check("approvals"); !k.Warn || !strings.Contains(k.Text, "finance") || !strings.Contains(k.Fix, "docs/people.md") {
		t.Errorf("doctor: %+v", k)
	}
	d := setUpApprovals(t, 1)
	if k := d.check("approvals"); k.Warn {
		t.Errorf("with people: %+v", k)
	}
}

// TestApprovalPageSaysTheWholeCommand: the server's certificate is an SVID, so that a login names its roots.
func TestApprovalPageSaysTheWholeCommand(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	d.pay(w, "900", "")
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // a browser that was let through
	r, err := c.Get(d.srv.baseURL() + "/approvals/" + string(d.newest().ID))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(b), "remit login --server "+d.srv.baseURL()+" --ca bundle.pem\n") {
		t.Errorf("%v %s", err, b)
	}
}
