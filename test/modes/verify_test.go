// SPDX-License-Identifier: Apache-2.0

package modes_test

import (
	"encoding/json"
	"strings"
	"testing"

	"remit"
)

// verified runs `remit grant verify` at the cluster: the bounds hold, nothing is left of the twin, and the live grant goes on.
// Then the administrator gives holders of leases more, and the same command finds it out.
func (w *world) verified(t *testing.T) {
	t.Helper()
	w.ready(t)
	token, _ := w.token(t)
	grant := w.newestGrant(t)
	r := w.remit(t, "grant", "verify", grant, "-o", "json")
	var v remit.Verification
	if err := json.Unmarshal([]byte(r.out), &v); r.code != 0 || err != nil || !v.Holds || string(v.Grant) != grant || len(v.Trials) < 50 {
		t.Fatalf("verify: %v: %s", err, r)
	}
	refused, passed, none := 0, 0, 0
	var after string
	for _, trial := range v.Trials {
		switch trial.Outcome {
		case remit.TrialRefused:
			refused++
		case remit.TrialPassed:
			passed++
		default:
			none++
		}
		if strings.Contains(trial.Act, "after the end") {
			after = trial.Detail
		}
	}
	t.Logf("%s: %d refused, %d passed, %d not tried; the twin, %s", w.mode, refused, passed, none, after)
	if got := w.get(t, token); got != 200 {
		t.Errorf("the live credential gets %d", got)
	}
	if left := w.admin(t, "get", "roles,rolebindings,serviceaccounts", "-A", "-l", "remit.internal/lease", "-o", "name"); strings.Contains(left, string(v.Twin)) {
		t.Errorf("left: %s", left)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"grant", "show", string(v.Twin)}, "made only to verify " + grant}, {[]string{"why", grant}, "NOT bounded: what the approved image does"},
		{[]string{"why", grant}, "bounded: namespace " + nsTarget}, {[]string{"ledger", "list", "--kind", "grant.verified", "-o", "json"}, string(v.Twin)},
		{[]string{"grant", "verify", grant}, "the bounds hold: true"},
	} {
		if r := w.remit(t, c.args...); r.code != 0 || !strings.Contains(r.out, c.want) {
			t.Errorf("want %q: %s", c.want, r)
		}
	}
	w.admin(t, "-n", nsTarget, "create", "role", "leak", "--verb=get", "--resource=secrets")
	w.admin(t, "-n", nsTarget, "create", "rolebinding", "leak", "--role=leak", "--group=system:serviceaccounts:remit-leases", "--group=remit:agents")
	r = w.remit(t, "grant", "verify", grant)
	if wide := w.mode != "webhook"; (r.code == 1) != wide || strings.Contains(r.out, "WRONG") != wide { // there RBAC is not asked
		t.Errorf("with a leak: %s", r)
	}
	w.admin(t, "-n", nsTarget, "delete", "role/leak", "rolebinding/leak")
	if r := w.remit(t, "run", "finish", w.run); r.code != 0 {
		t.Error(r)
	}
	if r := w.remit(t, "grant", "verify", grant); r.code == 0 || !strings.Contains(r.errs, "not live") {
		t.Errorf("of an ended grant: %s", r)
	}
}

// newestGrant is the live grant of the world's run.
func (w *world) newestGrant(t *testing.T) string {
	t.Helper()
	r := w.remit(t, "grant", "list", "-o", "json")
	var list struct {
		Items []remit.Grant `json:"items"`
	}
	if err := json.Unmarshal([]byte(r.out), &list); r.code != 0 || err != nil {
		t.Fatal(r)
	}
	for _, g := range list.Items {
		if g.State == remit.GrantActive && string(g.Run) == w.run {
			return string(g.ID)
		}
	}
	t.Fatal("no live grant")
	return ""
}
