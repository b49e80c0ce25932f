// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/gateway/authzen"
)

// desk remembers what was evaluated and held.
type desk struct {
	decisions map[remit.DecisionID]remit.Decision
	held      map[remit.HoldID]remit.Held
	partly    bool
}

func (d *desk) Evaluated(id remit.DecisionID) (remit.Decision, bool, error) {
	if e, ok := d.decisions[id]; ok {
		return e, !d.partly, nil
	}
	return remit.Decision{}, false, &remit.Error{Code: remit.CodeNotFound, Msg: "none"}
}

func (d *desk) Held(id remit.HoldID) (remit.Held, error) {
	if h, ok := d.held[id]; ok {
		return h, nil
	}
	return remit.Held{}, &remit.Error{Code: remit.CodeNotFound, Msg: "none"}
}

type task struct {
	Task struct {
		ID        string    `json:"id"`
		Status    string    `json:"status"`
		Endpoint  string    `json:"status_endpoint"`
		ExpiresAt time.Time `json:"expires_at"`
		Result    *struct {
			Mode     string `json:"mode"`
			Approval struct {
				ID    remit.HoldID `json:"id"`
				Until time.Time    `json:"approved_until"`
			} `json:"approval"`
		} `json:"result"`
	} `json:"task"`
}

const accessPath = "/access/v1/requests"

// accessFixture holds every request once; what is asked again while h is set is held as the same.
func accessFixture(t *testing.T) (*fixture, *desk, *remit.Held) {
	h := &remit.Held{ID: remit.NewHoldID(), Agent: "agent/deploy", State: remit.HeldPending, Asked: time.Now(), Until: time.Now().Add(time.Hour), Forget: time.Now().Add(2 * time.Hour)}
	d := &desk{decisions: map[remit.DecisionID]remit.Decision{}, held: map[remit.HoldID]remit.Held{h.ID: *h}}
	f := newFixture(t, func(r *remit.Request) (remit.Decision, error) {
		out := remit.Decision{ID: remit.NewDecisionID(), At: r.At, Effect: remit.Hold, Hold: h.ID, Until: h.Until, Agent: r.Agent, Caller: r.Caller.String(),
			Action: r.Action, Target: r.Target, Args: r.Args, Reasons: []remit.Reason{{Code: remit.ReasonApproval}}}
		if h.State == remit.HeldDenied {
			out.Effect, out.Hold, out.Reasons = remit.Deny, "", []remit.Reason{{Code: remit.ReasonApprovalDenied}}
		}
		d.decisions[out.ID] = out
		return out, nil
	}, func(c *authzen.Config) { c.Holds = d })
	return f, d, h
}

func (f *fixture) task(t *testing.T, w *httptest.ResponseRecorder) (out task) {
	t.Helper()
	if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &out) != nil || out.Task.ID == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return out
}

func (f *fixture) status(path, id string) *httptest.ResponseRecorder {
	return f.post(path, accessPath+"/"+id, "", func(r *http.Request) { r.Method = http.MethodGet })
}

func with(body, member string) string { return strings.TrimSuffix(body, "}") + "," + member + "}" }

// TestAccessRequest is the profile's story: a held evaluation, a task for it, approved, and evaluated again with the approval.
func TestAccessRequest(t *testing.T) {
	f, d, h := accessFixture(t)
	got := read(t, f.post("/agent/deploy", single, sound))
	if got.Context.AccessRequest == nil || got.Context.AccessRequest.Endpoint != base+accessPath {
		t.Fatalf("%+v", got.Context)
	}
	open := with(sound, `"denial":{"evaluation_id":"`+got.Context.EvaluationID+`"},"client":{"actor":"me"}`)
	one := f.task(t, f.post("/agent/deploy", accessPath, open))
	if one.Task.Status != "pending" || one.Task.Endpoint != base+accessPath+"/"+one.Task.ID || one.Task.Result != nil || !one.Task.ExpiresAt.Equal(h.Until.Truncate(time.Second)) {
		t.Errorf("%+v", one)
	}
	if again := f.task(t, f.post("/agent/deploy", accessPath, open)); again.Task.ID != one.Task.ID {
		t.Errorf("asked twice: %+v", again)
	}
	h.State = remit.HeldApproved
	d.held[h.ID] = *h
	two := f.task(t, f.status("/agent/deploy", one.Task.ID))
	if two.Task.Status != "approved" || two.Task.Result == nil || two.Task.Result.Mode != "reevaluate" || two.Task.Result.Approval.ID != h.ID || two.Task.Result.Approval.Until.IsZero() {
		t.Errorf("%+v", two)
	}
	for state, want := range map[remit.HeldState]string{remit.HeldDenied: "denied", remit.HeldExpired: "expired", remit.HeldUsed: "expired"} {
		h.State = state
		d.held[h.ID] = *h
		if got := f.task(t, f.status("/agent/deploy", one.Task.ID)); got.Task.Status != want || got.Task.Result != nil {
			t.Errorf("%s: %+v", state, got)
		}
	}
}

// TestAccessRequestsAreRefused: a task is its caller's alone, and of the request that was held.
func TestAccessRequestsAreRefused(t *testing.T) {
	f, d, _ := accessFixture(t)
	id := read(t, f.post("/agent/deploy", single, sound)).Context.EvaluationID
	denial := `"denial":{"evaluation_id":"` + id + `"}`
	other := strings.Replace(sound, "/agent/deploy", "/agent/other", 1)
	for name, c := range map[string]struct {
		path, body string
		code       int
	}{
		"another's":        {"/agent/other", with(other, denial), http.StatusNotFound},
		"a point's":        {"/pep/gate", with(sound, denial), http.StatusNotFound},
		"nobody":           {"/nobody", with(sound, denial), http.StatusForbidden},
		"another subject":  {"/agent/deploy", with(other, denial), http.StatusBadRequest},
		"another argument": {"/agent/deploy", with(strings.Replace(sound, `"name":"kubernetes.apply"`, `"name":"kubernetes.apply","properties":{"more":1}`, 1), denial), http.StatusBadRequest},
		"another target":   {"/agent/deploy", with(strings.Replace(sound, "production-cluster", "other-cluster", 1), denial), http.StatusBadRequest},
		"a callback":       {"/agent/deploy", with(sound, denial+`,"callback":{"url":"https://169.254.169.254/"}`), http.StatusBadRequest},
		"no evaluation":    {"/agent/deploy", sound, http.StatusBadRequest},
		"unknown":          {"/agent/deploy", with(sound, `"denial":{"evaluation_id":"`+string(remit.NewDecisionID())+`"}`), http.StatusNotFound},
	} {
		if w := f.post(c.path, accessPath, c.body); w.Code != c.code {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	for path, code := range map[string]int{"/agent/other": 404, "/pep/gate": 404, "/nobody": 403, "": 401} {
		if w := f.status(path, id); w.Code != code {
			t.Errorf("status for %q: %d %s", path, w.Code, w.Body)
		}
	}
	if w := f.post("/agent/deploy", accessPath+"/"+id, "{}"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST to a task: %d", w.Code)
	}
	plain := d.decisions[remit.DecisionID(id)]
	plain.Effect, plain.Hold = remit.Deny, ""
	d.decisions[plain.ID] = plain
	if w := f.post("/agent/deploy", accessPath, with(sound, denial)); w.Code != http.StatusNotFound {
		t.Errorf("of a denial: %d %s", w.Code, w.Body)
	}
}

// TestApprovalInContext: the approval that comes along allows nothing; it only says why it did not serve.
func TestApprovalInContext(t *testing.T) {
	f, d, h := accessFixture(t)
	used := remit.Held{ID: remit.NewHoldID(), Agent: "agent/deploy", State: remit.HeldUsed}
	theirs := remit.Held{ID: remit.NewHoldID(), Agent: "agent/other", State: remit.HeldUsed}
	open := remit.Held{ID: remit.NewHoldID(), Agent: "agent/deploy", State: remit.HeldApproved, Forget: time.Now().Add(time.Hour)}
	d.held[used.ID], d.held[theirs.ID], d.held[open.ID] = used, theirs, open
	for id, want := range map[string]string{string(h.ID): "retry grant_pending", string(used.ID): "request approval_expired", string(theirs.ID): "request approval_unverifiable",
		string(open.ID): "request out_of_scope", "mine": "request approval_unverifiable"} {
		w := f.post("/agent/deploy", single, with(sound, `"context":{"approval":{"id":"`+id+`","approved_until":"2030-01-01T00:00:00Z"}}`))
		got := read(t, w)
		if *got.Decision || got.Context.NextAction+" "+got.Context.NextReason != want {
			t.Errorf("%s: %s", id, w.Body)
		}
	}
	h.State = remit.HeldDenied
	if got := read(t, f.post("/agent/deploy", single, with(sound, `"context":{"approval":{"id":"`+string(h.ID)+`"}}`))); got.Context.NextAction != "none" || got.Context.NextReason != "policy_denied" {
		t.Errorf("%+v", got.Context)
	}
}
