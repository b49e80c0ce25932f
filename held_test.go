// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"testing"
	"time"

	"remit"
)

// TestApprovalCounts: only enough different people of the group, who approved, are a fact; one account under two names is one
// person, and an answer that only the state claims is none.
func TestApprovalCounts(t *testing.T) {
	at := time.Unix(1000, 0)
	need := remit.Need{Kind: remit.EvidenceApproval, Within: time.Minute, Match: map[string]string{"group": "finance", "people": "2"}}
	yes := func(person, account, group string) remit.Answer {
		return remit.Answer{Person: remit.Name(person), Account: account, Groups: []string{group}, Approve: true, At: at}
	}
	denial := yes("operator/d", "d", "finance")
	denial.Approve = false
	a, b := yes("operator/a", "a", "finance"), yes("operator/b", "b", "finance")
	for name, c := range map[string]struct {
		state   remit.HeldState
		answers []remit.Answer
		want    bool
	}{
		"two people":    {remit.HeldApproved, []remit.Answer{a, b}, true},
		"one":           {remit.HeldApproved, []remit.Answer{a}, false},
		"one twice":     {remit.HeldApproved, []remit.Answer{a, a}, false},
		"one account":   {remit.HeldApproved, []remit.Answer{a, yes("operator/b", "a", "finance")}, false},
		"another group": {remit.HeldApproved, []remit.Answer{a, yes("operator/c", "c", "sales")}, false},
		"one denied":    {remit.HeldApproved, []remit.Answer{a, denial}, false},
		"pending":       {remit.HeldPending, []remit.Answer{a, b}, false},
		"used":          {remit.HeldUsed, []remit.Answer{a, b}, false},
		"nobody":        {remit.HeldApproved, nil, false},
	} {
		h := remit.Held{ID: remit.NewHoldID(), Digest: "sha256:x", Needs: []remit.Need{need}, State: c.state, Answers: c.answers, Forget: at.Add(time.Hour)}
		if e := h.Fact(&need, at); (e != nil) != c.want {
			t.Errorf("%s: %+v", name, e)
		}
		if want := at.Add(time.Minute); c.want && !h.Lapses().Equal(want) {
			t.Errorf("%s: lapses %s", name, h.Lapses())
		}
	}
	for _, people := range []string{"", "0", "-1", "2.5", "21", "many"} {
		n := need
		n.Match = map[string]string{"group": "finance", "people": people}
		h := remit.Held{Needs: []remit.Need{n}, State: remit.HeldApproved, Answers: []remit.Answer{a, b}}
		if h.Fact(&n, at) != nil || h.Complete() {
			t.Errorf("people %q is enough", people)
		}
	}
	if h := (remit.Held{State: remit.HeldApproved}); h.Complete() {
		t.Error("a request that nobody is asked about is complete")
	}
}

// TestRequestDigest: everything that an approval is about changes the digest; times and ids do not.
func TestRequestDigest(t *testing.T) {
	base := func() (remit.Decision, remit.Run, []remit.Found) {
		return remit.Decision{ID: "dec-1", At: time.Unix(1, 0), Agent: "agent/a", Action: "mcp.call", Target: "t", Args: remit.Args{"amount": remit.IntValue(900)},
				Permission: remit.PermissionRef{Workflow: "w", Stage: "s", Name: "p"}},
			remit.Run{ID: "run-1", Stage: "s", Digest: "sha256:w"},
			[]remit.Found{{Need: remit.Need{Kind: remit.EvidenceScan}, Evidence: &remit.Evidence{ID: "evid-1", Kind: remit.EvidenceScan, Source: "trivy", Signer: "ci",
				Name: "scan-1", Subjects: []remit.Digest{"sha256:b", "sha256:a"}, Worst: remit.SeverityLow, Made: time.Unix(1, 0), Fields: map[string]string{"x": "1"}}},
				{Need: remit.Need{Kind: remit.EvidenceApproval, Match: map[string]string{"group": "finance", "people": "1"}}}}
	}
	digest := func(change func(*remit.Decision, *remit.Run, []remit.Found)) remit.Digest {
		d, r, f := base()
		change(&d, &r, f)
		return remit.RequestDigest(&d, &r, f)
	}
	plain := digest(func(*remit.Decision, *remit.Run, []remit.Found) {})
	same := digest(func(d *remit.Decision, _ *remit.Run, f []remit.Found) {
		d.ID, d.At, d.Credential, d.Args = "dec-2", time.Unix(9, 0), "jti", remit.Args{"amount": mustNumber(t, "900.00")}
		f[0].Evidence.ID, f[0].Evidence.Made, f[0].Evidence.Verified = "evid-2", time.Unix(5, 0), time.Unix(6, 0)
		f[0].Evidence.Subjects = []remit.Digest{"sha256:a", "sha256:b"}
		f[1].Evidence = &remit.Evidence{Kind: remit.EvidenceApproval, Name: "hold-1"}
	})
	if plain != same {
		t.Error("times or ids are in the digest")
	}
	seen := map[remit.Digest]string{plain: "nothing changed"}
	for name, change := range map[string]func(*remit.Decision, *remit.Run, []remit.Found){
		"agent":  func(d *remit.Decision, _ *remit.Run, _ []remit.Found) { d.Agent = "agent/b" },
		"action": func(d *remit.Decision, _ *remit.Run, _ []remit.Found) { d.Action = "mcp.list" },
		"target": func(d *remit.Decision, _ *remit.Run, _ []remit.Found) { d.Target = "u" },
		"argument": func(d *remit.Decision, _ *remit.Run, _ []remit.Found) {
			d.Args = remit.Args{"amount": remit.IntValue(901)}
		},
		"type": func(d *remit.Decision, _ *remit.Run, _ []remit.Found) {
			d.Args = remit.Args{"amount": remit.StringValue("900")}
		},
		"more":       func(d *remit.Decision, _ *remit.Run, _ []remit.Found) { d.Args["to"] = remit.StringValue("x") },
		"run":        func(_ *remit.Decision, r *remit.Run, _ []remit.Found) { r.ID = "run-2" },
		"stage":      func(_ *remit.Decision, r *remit.Run, _ []remit.Found) { r.Stage = "s2" },
		"workflow":   func(_ *remit.Decision, r *remit.Run, _ []remit.Found) { r.Digest = "sha256:v" },
		"permission": func(d *remit.Decision, _ *remit.Run, _ []remit.Found) { d.Permission.Name = "q" },
		"source":     func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[0].Evidence.Source = "other" },
		"signer":     func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[0].Evidence.Signer = "other" },
		"scan":       func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[0].Evidence.Name = "scan-2" },
		"subject":    func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[0].Evidence.Subjects[0] = "sha256:c" },
		"worst":      func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[0].Evidence.Worst = remit.SeverityHigh },
		"field":      func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[0].Evidence.Fields["x"] = "2" },
		"group":      func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[1].Need.Match["group"] = "sales" },
		"people":     func(_ *remit.Decision, _ *remit.Run, f []remit.Found) { f[1].Need.Match["people"] = "2" },
	} {
		d := digest(change)
		if was, dup := seen[d]; dup {
			t.Errorf("%s and %s are one digest", name, was)
		}
		seen[d] = name
	}
}

func mustNumber(t *testing.T, s string) remit.Value {
	t.Helper()
	v, err := remit.NumberValue(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
