// SPDX-License-Identifier: Apache-2.0

package behaviour_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/internal/behaviour"
)

// mixed is a history with all that detectors remember: honest work, hijacks, denials, ended leases and acts, a clock that goes back.
// It is the same each time: nothing in it is random.
func mixed() []remit.Entry {
	h, r := newHistory(), rand.New(rand.NewPCG(7, 7))
	for i := range 6000 {
		agent := remit.Name(fmt.Sprintf("agent/a%d", r.IntN(9)))
		after := time.Duration(r.IntN(40)-2) * time.Minute
		switch k := r.IntN(20); {
		case k == 0:
			h.deniedAs(fmt.Sprintf("dec-x%d", i), after, agent)
		case k == 1:
			h.add(after, remit.Event{Kind: remit.EventLeaseEnded, Agent: agent, Lease: remit.LeaseID(fmt.Sprint("lease-", i%50))})
		case k == 2:
			h.acts(after, agent, remit.LeaseID(fmt.Sprint("lease-", i%50)), `{"target":"t","verb":"select","allowed":true,"effective":true}`)
		case k == 3 && i > 4000:
			h.fixed(i, after, agent, "postgres.select", fmt.Sprintf("eve%d@evil.example", i))
		default:
			h.fixed(i, after, agent, []string{"mail.read", "mail.send"}[r.IntN(2)], fmt.Sprintf("c%d@x.example", r.IntN(60)))
		}
	}
	return h.entries
}

// fixed adds a decision without random ids and salts.
func (h *history) fixed(i int, after time.Duration, agent remit.Name, action, to string) {
	d := remit.Decision{ID: remit.DecisionID(fmt.Sprint("dec-", i)), At: h.at.Add(after), Policy: "sha256:p", Agent: agent, Run: remit.RunID(fmt.Sprint("run-", i/6)), Effect: remit.Allow, Caller: "spiffe://c/x", Action: action, Target: "mail",
		Permission: remit.PermissionRef{Workflow: "answer-mail", Stage: "work", Name: "any"}}
	e := remit.Event{At: d.At, Kind: remit.EventDecision, Agent: agent, Run: d.Run, Decision: d.ID, By: d.Caller, Data: d.AppendJSON(nil),
		Payload: disclosure("args.to", to)}
	h.add(after, e)
}

func (h *history) deniedAs(id string, after time.Duration, agent remit.Name) {
	d := remit.Decision{ID: remit.DecisionID(id), At: h.at.Add(after), Policy: "sha256:p", Agent: agent, Action: "http.get", Target: "desk", Reasons: []remit.Reason{{Code: remit.ReasonNoPermission, Want: "x", Got: "y"}}}
	h.add(after, remit.Event{At: d.At, Kind: remit.EventDecision, Agent: agent, Decision: d.ID, By: "x", Data: d.AppendJSON(nil)})
}

// both are the two detectors that a server has.
func both() map[string]behaviour.Config {
	l := behaviour.Learning{Budget: 0.5, Shadow: 3 * 24 * time.Hour, Alert: 24 * time.Hour}
	return map[string]behaviour.Config{"baselines": {Learn: &l}, "rules": {Denials: 5, Within: 2 * time.Hour, Canaries: []behaviour.Canary{{Name: "c", Target: "desk"}}}}
}

func saved(t *testing.T, d *behaviour.Detector) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := d.Save(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSavedGoesOn: whoever goes on from what was saved, wherever, finds the same and knows the same to the byte as who read all.
func TestSavedGoesOn(t *testing.T) {
	all := mixed()
	for name, cfg := range both() {
		whole, parts := behaviour.New(cfg), behaviour.New(cfg)
		var want, got []remit.Finding
		for i, e := range all {
			want, got = append(want, whole.Next(e)...), append(got, parts.Next(e)...)
			if i%531 != 0 {
				continue
			}
			b := saved(t, parts)
			parts = behaviour.New(cfg)
			if err := parts.Load(bytes.NewReader(b)); err != nil {
				t.Fatal(name, err)
			}
			if again := saved(t, parts); !bytes.Equal(b, again) {
				t.Fatalf("%s: after entry %d: what was loaded is %d bytes, saved were %d", name, i, len(again), len(b))
			}
		}
		if a, b := saved(t, whole), saved(t, parts); !bytes.Equal(a, b) || len(a) < 100 {
			t.Errorf("%s: %d and %d bytes, which differ", name, len(a), len(b))
		}
		if diff := cmp.Diff(want, got); diff != "" || len(want) < 2 {
			t.Errorf("%s: %d findings: %s", name, len(want), diff)
		}
		t.Logf("%s: %d findings, %d bytes", name, len(want), len(saved(t, whole)))
	}
}

// TestStateVersion: a fold that learns otherwise, or saves otherwise, must not go on from an older one's state. When this fails, raise
// StateVersion and write the new digest here.
func TestStateVersion(t *testing.T) {
	sum := ""
	for _, name := range []string{"baselines", "rules"} {
		d := behaviour.New(both()[name])
		for _, e := range mixed() {
			d.Next(e)
		}
		got := sha256.Sum256(saved(t, d))
		sum += hex.EncodeToString(got[:4])
	}
	if want := map[int]string{4: "acad305bf782bb04"}[behaviour.StateVersion]; sum != want {
		t.Errorf("version %d: %s, want %s", behaviour.StateVersion, sum, want)
	}
}

// FuzzLoad: whatever is loaded, nothing but an error comes of it, in bounded memory.
func FuzzLoad(f *testing.F) {
	for name, cfg := range both() {
		d := behaviour.New(cfg)
		for _, e := range mixed()[:200] {
			d.Next(e)
		}
		var b bytes.Buffer
		if err := d.Save(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), name == "rules")
		f.Add(b.Bytes()[:b.Len()/2], name == "rules")
	}
	f.Fuzz(func(t *testing.T, b []byte, rules bool) {
		d := behaviour.New(both()[map[bool]string{true: "rules", false: "baselines"}[rules]])
		if d.Load(bytes.NewReader(b)) != nil {
			return
		}
		if again := saved(t, d); len(again) == 0 {
			t.Error("nothing is saved")
		}
	})
}

// TestLoadRefuses: what is cut off, longer or for another fold is an error.
func TestLoadRefuses(t *testing.T) {
	cfg := both()["baselines"]
	d := behaviour.New(cfg)
	for _, e := range mixed()[:500] {
		d.Next(e)
	}
	good := saved(t, d)
	for what, b := range map[string][]byte{"empty": nil, "cut": good[:len(good)-1], "half": good[:len(good)/2], "longer": append(bytes.Clone(good), 0),
		"too many": append([]byte{0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}, good...)} {
		if err := behaviour.New(cfg).Load(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: loaded", what)
		}
	}
	if err := d.Save(failing{}); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errFull = errors.New("the disk is full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

// disclosure is a payload of one value, with a salt that is always the same.
func disclosure(path, text string) []byte {
	return []byte(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `["c2FsdHNhbHRzYWx0c2E",%q,%q]`, path, text)) + "~")
}

// TestTwiceIsOnce: an entry that comes again, or late, changes nothing: no denial counts twice, nothing is learned twice.
func TestTwiceIsOnce(t *testing.T) {
	all := mixed()
	for name, cfg := range both() {
		once, twice := behaviour.New(cfg), behaviour.New(cfg)
		var want, got []remit.Finding
		for i, e := range all {
			want, got = append(want, once.Next(e)...), append(got, twice.Next(e)...)
			if again := append(twice.Next(e), twice.Next(all[i/2])...); len(again) > 0 {
				t.Fatalf("%s: found by what came again: %+v", name, again)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || !bytes.Equal(saved(t, once), saved(t, twice)) {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
