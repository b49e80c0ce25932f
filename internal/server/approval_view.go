// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/store"
)

// maxShown is how much of a value a person is shown; the rest is said to be there, with its length.
const maxShown = 400

// asked is what was asked for, as the ledger has it.
type asked struct {
	decision remit.Decision
	erased   []string
}

// askedOf reads the decision that was held first. Sensitive values are not in it.
func (s *Server) askedOf(h *remit.Held) (asked, error) {
	e, ok, err := s.store.Decision(h.Decision)
	if err == nil && !ok {
		err = notFound("decision", string(h.Decision))
	}
	if err != nil {
		return asked{}, err
	}
	d, err := decisionOf(e)
	return asked{d, e.Open().Erased}, err
}

// view is a held request as a person sees it. Everything that an agent wrote is a value beside its name and kind, escaped and cut:
// none of it can pass for a line of ours (S39).
func (s *Server) view(ctx context.Context, h *remit.Held, who remit.Principal, past *used) (api.Approval, error) {
	a, err := s.askedOf(h)
	if err != nil {
		return api.Approval{}, err
	}
	d := &a.decision
	now := s.now()
	out := api.Approval{ID: h.ID, State: h.State, Asked: h.Asked, Until: h.Until, Decision: string(h.Decision), Used: string(h.Used), Agent: h.Agent,
		Action: h.Action, Target: h.Target, Workflow: h.Permission.Workflow, Stage: h.Permission.Stage, For: h.Permission.Name, Run: h.Run,
		Level: d.Level, Would: s.wouldAllow(ctx, h)}
	if h.State == remit.HeldApproved {
		out.Until = h.Lapses()
	}
	if h.State == remit.HeldPending || h.State == remit.HeldApproved {
		out.Seconds = max(0, int64(out.Until.Sub(now).Seconds()))
	}
	agent, _ := s.registry.Named(h.Agent)
	out.Owner = agent.Owner
	run, _ := s.store.Run(h.Run)
	out.Starter = run.Starter
	permission := s.permissionOf(h.Permission)
	if permission != nil {
		out.Line = permission.Line
	}
	last := s.lastApproved(h, &out, past)
	out.Args = values(d.Args, last, func(name string) string { return declared(permission, name) })
	out.Params = values(d.Params, nil, func(name string) string { return cmp.Or(run.Sources[name], "asserted") })
	for i := range d.Evidence {
		e := &d.Evidence[i]
		out.Evidence = append(out.Evidence, printable(fmt.Sprintf("%s %s by %s, made %s", e.Kind, e.Name, strings.TrimSpace(e.Source+" "+e.Signer), e.Made.UTC().Format("2006-01-02 15:04:05Z"))))
	}
	for i := range h.Needs {
		n := &h.Needs[i]
		of, _ := strconv.Atoi(n.Match["people"])
		out.People = append(out.People, api.AskedPeople{Group: n.Match["group"], People: of, Missing: h.Missing(n)})
	}
	for _, x := range h.Answers {
		out.Answers = append(out.Answers, api.ApprovalAnswer{Person: x.Person, Approve: x.Approve, At: x.At, Reason: printable(x.Reason)})
	}
	if err := s.mayApprove(h, who, now); err != nil {
		out.You = err.Error()
	}
	return out, nil
}

// permissionOf returns a permission of the active revision, or nil.
func (s *Server) permissionOf(ref remit.PermissionRef) *remit.Permission {
	w, ok := s.rev.Load().workflow(ref.Workflow)
	if !ok {
		return nil
	}
	for i := range w.Stages {
		for j := range w.Stages[i].May {
			if p := &w.Stages[i].May[j]; w.Stages[i].Name == ref.Stage && p.Name == ref.Name {
				return p
			}
		}
	}
	return nil
}

// used are the requests whose approval was used, newest first. They are read as far back as somebody looks for one, and once for all
// that a call shows.
type used struct {
	store *store.Store
	of    map[usedKey][]remit.Held
	after remit.HoldID
	over  bool
}

type usedKey struct {
	agent      remit.Name
	permission remit.PermissionRef
}

const usedPage = 200

func (s *Server) used() *used { return &used{store: s.store, of: map[usedKey][]remit.Held{}} }

// nth returns the n-th newest of an agent and permission, or nil.
func (u *used) nth(key usedKey, n int) *remit.Held {
	for n >= len(u.of[key]) && !u.over {
		rows, err := u.store.ListHeld(store.HeldFilter{State: remit.HeldUsed}, usedPage, u.after)
		for i := range rows {
			r := &rows[i]
			k := usedKey{r.Agent, r.Permission}
			u.of[k] = append(u.of[k], remit.Held{ID: r.ID, Decision: r.Decision, Asked: r.Asked}) // no more: there may be many
			u.after = r.ID
		}
		u.over = err != nil || len(rows) < usedPage
	}
	if n >= len(u.of[key]) {
		return nil
	}
	return &u.of[key][n]
}

// lastApproved finds what was asked the last time that this agent had an approval for this permission.
func (s *Server) lastApproved(h *remit.Held, out *api.Approval, past *used) remit.Args {
	key := usedKey{h.Agent, h.Permission}
	for n := 0; ; n++ {
		r := past.nth(key, n)
		if r == nil {
			return nil
		}
		if r.ID == h.ID || r.Asked.After(h.Asked) {
			continue
		}
		before, err := s.askedOf(r)
		if err != nil || len(before.erased) > 0 {
			continue
		}
		now, err := s.askedOf(h)
		out.Last = &api.LastApproved{ID: r.ID, At: r.Asked, Same: err == nil && remit.ObjectValue(before.decision.Args).Equal(remit.ObjectValue(now.decision.Args))}
		return before.decision.Args
	}
}

// declared is what the permission lets an argument be.
func declared(p *remit.Permission, name string) string {
	if p == nil {
		return ""
	}
	is, ok := p.Where[name]
	if !ok {
		return ""
	}
	return config.DescribePredicate(is)
}

func values(of map[string]remit.Value, last remit.Args, what func(string) string) (out []api.AskedValue) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		v := of[name]
		one := api.AskedValue{Name: printable(name), Kind: v.Kind().String(), Declared: printable(what(name))}
		one.Value, one.Length = shown(v)
		if before, ok := last[name]; last != nil && !(ok && before.Equal(v)) {
			if one.Last = "(none)"; ok {
				one.Last, _ = shown(before)
			}
		}
		out = append(out, one)
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		if _, ok := of[name]; !ok {
			was, _ := shown(last[name])
			out = append(out, api.AskedValue{Name: printable(name), Kind: "absent", Last: was})
		}
	}
	return out
}

// shown is a value as JSON that only prints: control characters, what changes the direction of text, and what has no width are
// escaped. length is above zero when it was cut.
func shown(v remit.Value) (text string, length int) {
	whole := printable(v.String())
	if len(whole) > maxShown {
		return remit.Clip(whole, maxShown), len(v.String())
	}
	return whole, 0
}

// printable escapes all that does not stand for itself on a screen.
func printable(s string) string {
	//remit:guard S39 TestApproversSeeWhatIsAsked
	if strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return escaped(s)
	}
	return s
}

func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		if plain(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
	}
	return b.String()
}

// plain is a letter, mark, number, punctuation, symbol or the plain space: neither controls nor formats, such as the bidirectional
// ones, nor other spaces.
func plain(r rune) bool {
	return r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r) && r != unicode.ReplacementChar
}
