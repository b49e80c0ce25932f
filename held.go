// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/rand"
	"slices"
	"strings"
	"time"
)

// HoldID names one request that waits for people.
type HoldID string

// NewHoldID returns a fresh random ID.
func NewHoldID() HoldID { return HoldID(newID("hold")) }

// ParseHoldID parses what a caller wrote.
func ParseHoldID(s string) (HoldID, error) { return HoldID(s), parseID("hold", s) }

// HeldState is where a held request stands.
type HeldState string

// The states. Only pending takes answers, but for a denial of what is approved and not used yet; only approved is evidence, and
// only once.
const (
	HeldPending  HeldState = "pending"
	HeldApproved HeldState = "approved"
	HeldDenied   HeldState = "denied"
	HeldExpired  HeldState = "expired" // nobody answered in time, or the run ended
	HeldUsed     HeldState = "used"    // a decision rests on it: it counts for that one and no other
)

// Held is the stored row of a held request: who is asked what about it, until when, and what they said. What was asked stands in
// the decision in the ledger; here is only its digest. The store encrypts the row, because a digest of few possible values tells
// them.
type Held struct {
	ID         HoldID        `json:"id"`
	Digest     Digest        `json:"digest"`   // RequestDigest of what was asked
	Salt       []byte        `json:"salt"`     // for what the ledger shows of it
	Decision   DecisionID    `json:"decision"` // the first that was held for it
	Agent      Name          `json:"agent"`
	Requester  Name          `json:"requester,omitempty"` // the person who launched the process that asked, if one did
	Run        RunID         `json:"run"`
	Permission PermissionRef `json:"permission"`
	Action     string        `json:"action"`
	Target     string        `json:"target"`
	Needs      []Need        `json:"needs"` // of people
	Asked      time.Time     `json:"asked"`
	Until      time.Time     `json:"until"`  // after it nobody can answer
	Forget     time.Time     `json:"forget"` // the end of its run
	State      HeldState     `json:"state"`
	Answers    []Answer      `json:"answers,omitempty"`
	Used       DecisionID    `json:"used,omitempty"`
	Told       []string      `json:"told,omitempty"` // webhooks that know of it
	Ended      time.Time     `json:"ended,omitzero"` // denied, expired or used
}

// Answer is what one person said in a session of their own.
type Answer struct {
	Person  Name      `json:"person"`
	Session SessionID `json:"session,omitempty"` // empty: a denial from elsewhere
	Account string    `json:"account,omitempty"` // who that is at the identity provider
	Groups  []string  `json:"groups,omitempty"`  // as the provider stated them at the login
	Approve bool      `json:"approve"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason,omitempty"`
}

// EpochKey returns HeldKey: answers, use and expiry of one request exclude each other.
func (h Held) EpochKey() EpochKey { return HeldKey(h.Digest) }

// HeldKey is moved by all that happens to a held request.
func HeldKey(d Digest) EpochKey { return EpochKey("hold/" + string(d)) }

// NewHeld opens a question about d.
func NewHeld(d *Decision, asked Digest, needs []Need, run *Run, until time.Time) Held {
	salt := make([]byte, 32)
	_, _ = rand.Read(salt) // never fails since Go 1.24
	return Held{ID: NewHoldID(), Digest: asked, Salt: salt, Decision: d.ID, Agent: d.Agent, Run: d.Run, Permission: d.Permission, Action: d.Action,
		Target: d.Target, Needs: needs, Asked: d.At, Until: until, Forget: run.Expires, State: HeldPending}
}

// RequestDigest is the canonical digest that an approval is bound to: agent, action, target, arguments, run, stage, permission,
// the facts, and who is asked. No times and no ids but the run's, so that the same request has the same digest, and nothing else has.
// found holds the facts in order of the needs.
func RequestDigest(d *Decision, run *Run, found []Found) Digest {
	b := appendText([]byte{'{'}, `"v":`, "1")
	b = appendText(b, `,"agent":`, string(d.Agent))
	b = appendText(b, `,"action":`, d.Action)
	b = appendText(b, `,"target":`, d.Target)
	b = appendFields(append(b, `,"args":`...), d.Args)
	b = appendText(b, `,"run":`, string(run.ID))
	b = appendText(b, `,"workflow":`, d.Permission.Workflow)
	b = appendText(b, `,"workflow_digest":`, string(run.Digest))
	b = appendText(b, `,"stage":`, run.Stage)
	b = appendText(b, `,"permission":`, d.Permission.Name)
	b = append(b, `,"evidence":[`...)
	for i := range found {
		b = found[i].appendAsked(comma(b, i))
	}
	return DigestOf(append(b, "]}"...))
}

// appendAsked writes the fact without its times and ids, or who is to approve.
func (f *Found) appendAsked(b []byte) []byte {
	b = appendText(b, `{"kind":`, string(f.Need.Kind))
	if e := f.Evidence; e != nil && f.Need.Kind != EvidenceApproval {
		b = appendText(b, `,"source":`, e.Source)
		b = appendText(b, `,"signer":`, e.Signer)
		b = appendText(b, `,"name":`, e.Name)
		subjects := slices.Clone(e.Subjects)
		slices.Sort(subjects)
		b = appendTexts(append(b, `,"subjects":`...), subjects)
		b = appendText(b, `,"worst":`, e.Worst.String())
		return append(appendTextMap(append(b, `,"fields":`...), e.Fields), '}')
	}
	b = appendNumber(b, `,"within":`, int64(f.Need.Within))
	return append(appendTextMap(append(b, `,"match":`...), f.Need.Match), '}')
}

func appendTextMap(b []byte, m map[string]string) []byte {
	var stack [8]string
	b = append(b, '{')
	for i, k := range sortedKeys(m, stack[:0]) {
		b = AppendJSONString(append(AppendJSONString(comma(b, i), k), ':'), m[k])
	}
	return append(b, '}')
}

// Open reports whether h can still be answered at t.
func (h *Held) Open(t time.Time) bool { return h.State == HeldPending && t.Before(h.Until) }

// approvers are the approving answers that count for a need, oldest first. Nobody counts twice, by name or by account.
func (h *Held) approvers(n *Need) (out []Answer) {
	for _, a := range h.Answers {
		known := slices.ContainsFunc(out, func(o Answer) bool {
			return o.Person == a.Person || o.Account == a.Account
		})
		//remit:guard S39 TestApprovalCounts
		if a.Approve && !known && slices.Contains(a.Groups, n.Match["group"]) {
			out = append(out, a)
		}
	}
	return out
}

// people is how many the need asks for; what cannot be read asks for more than there are.
func people(n *Need) int {
	v, err := NumberValue(n.Match["people"])
	if err != nil {
		return 1 << 30
	}
	for i := 1; i <= 20; i++ {
		if v.Equal(IntValue(int64(i))) {
			return i
		}
	}
	return 1 << 30
}

// Missing is how many more people have to approve for a need.
func (h *Held) Missing(n *Need) int { return max(0, people(n)-len(h.approvers(n))) }

// Complete reports whether enough people approved for all needs.
func (h *Held) Complete() bool {
	for i := range h.Needs {
		if h.Missing(&h.Needs[i]) > 0 {
			return false
		}
	}
	return len(h.Needs) > 0
}

// Lapses is when an approval stops counting: the shortest of its needs' times after its oldest answer.
func (h *Held) Lapses() time.Time {
	end := h.Forget
	for i := range h.Needs {
		n := &h.Needs[i]
		for _, a := range h.approvers(n) {
			if old := a.At.Add(n.Within); n.Within > 0 && old.Before(end) {
				end = old
			}
		}
	}
	return end
}

// Fact is the approval as evidence for a need, or nil: h is not approved, or not by as many of that group. It was made when the
// first of them answered.
func (h *Held) Fact(n *Need, at time.Time) *Evidence {
	//remit:guard S39 TestApprovalCounts
	if h.State != HeldApproved || h.Missing(n) > 0 {
		return nil
	}
	by := h.approvers(n)
	var names []string
	for _, a := range by {
		names = append(names, string(a.Person))
	}
	fields := make(map[string]string, len(n.Match))
	for k, v := range n.Match {
		fields[k] = v
	}
	return &Evidence{ID: EvidenceID("evid-" + strings.TrimPrefix(string(h.ID), "hold-")), Kind: EvidenceApproval, Source: n.Source,
		Signer: strings.Join(names, " "), Name: string(h.ID), Made: by[0].At, Verified: at, Fields: fields, Digest: h.Bound()}
}

// Bound is what the ledger shows of what was approved: a digest that only who has the salt can compare with a request.
func (h *Held) Bound() Digest { return DigestOf(append(slices.Clone(h.Salt), h.Digest...)) }
