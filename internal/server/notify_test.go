// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
)

// notifying has an organisation's rule with the obligation on every payment.
func (f *fixture) notifying(obligation string) {
	f.t.Helper()
	rules := filepath.Join(f.dir, dirConfig, "rules")
	if err := os.MkdirAll(rules, 0o700); err != nil {
		f.t.Fatal(err)
	}
	text := "package remit.rules\n\nobligations contains \"" + obligation + "\" if input.action == \"memory.pay\"\n"
	if err := os.WriteFile(filepath.Join(rules, "tell.rego"), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if !strings.Contains(f.files, "rules/tell.rego") {
		f.files += "---\nkind: Rule\nname: tell\nfile: rules/tell.rego\n"
	}
	f.write(f.files)
	f.must("/v1/apply", nil, nil)
}

// TestNotify: what a rule wants told is told, by a signed delivery without values; a receiver that is down is told later, and one that
// stays down is a finding.
func TestNotify(t *testing.T) {
	f, desk, _ := setUpAnnounced(t)
	f.notifying("notify=desk")
	d := &refundDesk{people: &people{fixture: f}}
	w := f.agent("agent/deploy", f.shared()).enter(d.refunds(f.admin))
	desk.broken.Store(true)
	if g := d.pay(w, "40", ""); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	time.Sleep(500 * time.Millisecond) // tried once, in vain
	desk.broken.Store(false)
	f.ahead.Add(int64(5 * time.Second))
	r, body := desk.next(t)
	mac := hmac.New(sha256.New, []byte(hookSecret))
	fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
	if r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) || !strings.HasPrefix(r.Header.Get("webhook-id"), "msg-dec-") {
		t.Errorf("%v", r.Header)
	}
	if !strings.Contains(body, `"type":"decision.allowed"`) || !strings.Contains(body, `"agent":"agent/deploy"`) || strings.Contains(body, "555") || strings.Contains(body, `40`+`,`) {
		t.Errorf("%s", body)
	}
	desk.broken.Store(true)
	if g := d.pay(w, "41", ""); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	f.ahead.Add(int64(16 * time.Minute))
	f.eventually("a finding", func() bool { return f.events(remit.EventFinding) > 0 })
}

// TestNotifyThatCannotBeKept: a webhook that there is not, or whose queue is full, is a denial, whatever an enforcement point says that it
// knows.
func TestNotifyThatCannotBeKept(t *testing.T) {
	f, _, _ := setUpAnnounced(t)
	f.notifying("notify=ghost")
	d := &refundDesk{people: &people{fixture: f}}
	w := f.agent("agent/deploy", f.shared()).enter(d.refunds(f.admin))
	if g := d.pay(w, "40", ""); g.code() != "obligation_unknown" {
		t.Errorf("no such webhook: %+v", g)
	}
	body := fmt.Sprintf(`{"subject":{"type":"agent","id":%q},"action":{"name":"memory.pay"},"resource":{"type":"memory","id":"cluster","properties":{"customer":555,"amount":40}},`+
		`"context":{"run_token":%q,"supported_obligations":["notify","notify=ghost"]}}`, w.svid.ID, w.token)
	var a struct{ Decision bool }
	if status := w.call("/access/v1/evaluation", "application/json", strings.NewReader(body), &a); status != 200 || a.Decision {
		t.Errorf("an enforcement point that says it knows: %d %+v", status, a)
	}
	f.notifying("notify=dead")
	var dead *webhook
	for _, h := range f.srv.webhooks {
		if h.cfg.Name == "dead" {
			dead = h
		}
	}
	dead.mu.Lock()
	for range notifyQueue {
		dead.notices = append(dead.notices, &notice{decision: remit.Decision{ID: remit.NewDecisionID(), At: f.srv.now()}, next: f.srv.now().Add(time.Hour)})
	}
	dead.mu.Unlock()
	w = f.agent("agent/deploy", f.shared()).enter(d.refunds(f.admin))
	if g := d.pay(w, "40", ""); g.code() != "obligation_unknown" {
		t.Errorf("a queue that is full: %+v", g)
	}
}
