// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"remit"
	"remit/internal/api"
	"remit/internal/broker"
	"remit/internal/config"
	"remit/internal/evidence"
	"remit/internal/gateway/admin"
	"remit/internal/gateway/egress"
	"remit/internal/gateway/mcp"
	pglog "remit/internal/gateway/postgres"
	"remit/internal/identity"
	"remit/internal/policy"
)

// revision is one checked configuration with everything that was built from it. It never changes; a new one takes its place.
type revision struct {
	set            *config.Set
	plan           *policy.Plan
	collector      *evidence.Collector
	targets        map[string]broker.Target
	clients        map[string]map[string]string // per target: what its clients may know
	setups         map[string]string            // per target: what an administrator runs there
	webhooks       map[string]http.Handler      // per target: what its own API server calls
	logs           map[string]*pglog.Log        // per target: its own log of what was executed
	probes         map[string]func(context.Context) (string, error)
	workflows      map[string]*remit.Workflow
	audiences      map[string]bool            // of grant tokens, at targets
	remotes        map[remit.Name]*mcp.Server // of tools at addresses
	pins           map[remit.Name]*mcp.Pins
	origins        map[remit.Name]remit.Digest // of tools' servers
	unfit          sync.Map                    // remit.Name to []misfit: of servers that have no pins, found once their first list is known
	outside        *egress.Targets             // of the egress proxy
	ceiling        remit.Digest                // under which it stands; empty: none
	version        uint64                      // of its bundle; 0: unsigned
	signers        []string
	ceilingSigners []string
	epoch          uint64              // of the policy
	authors        map[string][]string // per workflow
}

// take notes under which signatures and ceiling a revision stands.
func (r *revision) take(c *candidate) {
	r.signers, r.ceilingSigners = c.signers, c.ceilingSigners
	if c.revision.Bundle.Envelope != nil {
		r.version = c.revision.Bundle.Version
	}
	if c.ceiling != nil {
		r.ceiling = c.ceiling.Digest
	}
}

func (r *revision) workflow(name string) (*remit.Workflow, bool) {
	w, ok := r.workflows[name]
	return w, ok
}

// build checks a configuration by building all of it; epoch is what the policy's will be when it is active.
func (s *Server) build(set *config.Set, epoch uint64) (*revision, error) {
	r := &revision{set: set, epoch: epoch, targets: map[string]broker.Target{}, clients: map[string]map[string]string{}, webhooks: map[string]http.Handler{},
		setups: map[string]string{}, logs: map[string]*pglog.Log{}, probes: map[string]func(context.Context) (string, error){}, workflows: map[string]*remit.Workflow{}, audiences: map[string]bool{}}
	var errs []error
	var outside []*egress.Target
	d := s.depsOf(set)
	for _, name := range slices.Sorted(maps.Keys(set.Targets)) {
		b, err := newTarget(set.Targets[name], d)
		errs = append(errs, err)
		r.targets[name], r.clients[name] = b.target, b.client
		client := b.client
		r.probes[name], r.setups[name] = b.probe, b.setup
		if b.out != nil {
			outside = append(outside, b.out)
		}
		if b.log != nil {
			r.logs[name] = b.log
		}
		if b.webhooks != nil {
			r.webhooks[name] = b.webhooks
		}
		if aud := client["audience"]; aud != "" {
			r.audiences[aud] = true
		}
	}
	var err error
	r.outside, err = egress.NewTargets(outside...)
	errs = append(errs, err, r.buildTools())
	errs = append(errs, r.checkAudiences(s.cfg.GrantIssuer), s.checkUsers(set), register(identity.NewRegistry(), set))
	sources := map[string]evidence.Source{}
	for _, name := range slices.Sorted(maps.Keys(set.Sources)) {
		source, err := newSource(set.Sources[name], d)
		errs = append(errs, err)
		sources[name] = source
	}
	r.plan, err = compile(set, epoch, s.parent, s.values.Holds)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	if r.collector, err = evidence.New(evidence.Config{Sources: sources}); err != nil {
		return nil, err
	}
	for i := range set.Workflows {
		r.workflows[set.Workflows[i].Name] = &set.Workflows[i]
	}
	return r, nil
}

func (s *Server) depsOf(set *config.Set) deps {
	return deps{server: s, store: s.store, images: s.images, grants: s.ids.grants, issuer: s.cfg.GrantIssuer, set: set, now: s.now}
}

// checkAudiences is S1: no agent's JWT-SVID may be for what a target would accept.
func (r *revision) checkAudiences(grantIssuer string) error {
	taken := map[string]bool{grantIssuer: true}
	maps.Copy(taken, r.audiences)
	for _, client := range r.clients {
		if server := client["server"]; server != "" {
			taken[server] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.set.Agents)) {
		for _, aud := range r.set.Agents[name].Audiences {
			//remit:guard S1 TestBrokenFilesKeepTheRevision
			if taken[aud] {
				return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s lists the audience %s, which a target uses", name, aud),
					Hint: "take it out of the agent's audiences: targets trust grants, never SVIDs"}
			}
		}
	}
	return nil
}

// checkUsers is S2: a process of an operator's user is that operator on the admin socket, so no agent, tool or enforcement point
// may be attested or launched as one. allow_own_uid is for one user who is all of them.
func (s *Server) checkUsers(set *config.Set) error {
	shared := s.sharedUsers(set)
	//remit:guard S2 TestAgentOfOperatorsUser
	if len(shared) > 0 && !s.cfg.AllowOwnUID {
		return errors.Join(shared...)
	}
	return nil
}

// sharedUsers says who would run as an operator.
func (s *Server) sharedUsers(set *config.Set) (errs []error) {
	refuse := func(name remit.Name, uid uint32) {
		if who, _, ok := s.person(uid); ok {
			errs = append(errs, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s would run as uid %d, which is %s on the admin socket", name, uid, who),
				Hint: "give it a user of its own"})
		}
	}
	attested := func(name remit.Name, sets []remit.Attestation) {
		for _, a := range sets {
			for _, sel := range a.Selectors {
				if uid, err := strconv.ParseUint(strings.TrimPrefix(sel, "unix:uid:"), 10, 32); err == nil {
					refuse(name, uint32(uid))
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set.Agents)) {
		a := set.Agents[name]
		attested(name, a.Attest)
		if a.Launch != nil && a.Launch.OwnUID {
			refuse(name, a.Launch.UID)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set.EnforcementPoints)) {
		attested(name, set.EnforcementPoints[name].Attest)
	}
	return errs
}

// atStart is by whom the apply of a start is.
const atStart = "remit"

// activate makes what stands in the configuration directory the active revision, or says what is wrong and leaves the old one.
func (s *Server) activate(ctx context.Context, by string, dry bool) (api.Applied, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	c, err := s.read(nil)
	//remit:guard S31 TestUnsignedIsRefused,TestBundlesAreRefused
	if err == nil && !dry {
		err = c.unsigned
	}
	var out api.Applied
	if err == nil {
		out, err = s.put(ctx, c, by, dry)
	}
	if !dry {
		s.noteRefusal(ctx, by, err)
	}
	return out, asInvalid(err)
}

// put builds a checked configuration and, unless dry, activates it.
func (s *Server) put(ctx context.Context, c *candidate, by string, dry bool) (api.Applied, error) {
	//remit:guard S31 TestUnsignedIsNotBuilt
	if c.unsigned != nil {
		return s.compare(c)
	}
	old := s.rev.Load()
	out := s.applied(old, c)
	out.DryRun = dry
	epoch := s.store.Epoch(remit.PolicyKey)
	stored, known := s.store.ActiveRevision()
	fresh := !known || !same(&stored, &c.revision)
	if fresh || old != nil {
		epoch++
	}
	next, err := s.build(c.set, epoch)
	if err == nil && by != atStart { // a start has to go on with what is active: calls under such a rule are denied
		err = s.checkSeen(next)
	}
	out.Unpinned = s.unpinned(c.set, next)
	if err != nil || dry {
		return out, err
	}
	next.take(c)
	next.authors = authorsOf(old, &stored, next, by)
	c.revision.Authors = next.authors
	if fresh {
		if err := s.commitRevision(ctx, c, out, by, epoch-1); err != nil {
			return out, err
		}
	} else if old != nil { // the same files, but maybe other keys behind them: what is being decided by the old ones must not stand
		s.store.Tighten(remit.PolicyKey)
	}
	s.retire(old, next)
	s.rev.Store(next)
	if err := register(s.registry, c.set); err != nil { // build tried it
		return out, err
	}
	s.registry.Notify()
	s.endChanged(ctx, next)
	out.Ended = s.endRemoved(ctx, next, by) + s.recheckAll(ctx, by == atStart, by)
	return out, nil
}

// authorsOf says whose each workflow is: of who put it there as it stands now, in this revision or an earlier one.
func authorsOf(old *revision, stored *remit.Revision, next *revision, by string) map[string][]string {
	out := map[string][]string{}
	for name, w := range next.workflows {
		switch before := (*remit.Workflow)(nil); {
		case old == nil && stored.Digest == next.set.Digest:
			if out[name] = stored.Authors[name]; stored.Authors == nil { // written by an older version
				out[name] = []string{stored.By}
			}
			continue
		case old != nil:
			if before = old.workflows[name]; before != nil && before.Digest == w.Digest {
				out[name] = old.authors[name]
				continue
			}
		}
		out[name] = append([]string{by}, next.signers...)
	}
	return out
}

func register(r *identity.Registry, set *config.Set) error {
	return r.Replace(slices.Collect(maps.Values(set.Agents)), slices.Collect(maps.Values(set.EnforcementPoints)))
}

func asInvalid(err error) error {
	const hint = "the active revision stays as it is; mend the files and apply again"
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*remit.Error](err)
	if !ok || e.Code == remit.CodeInternal {
		return &remit.Error{Code: remit.CodeInvalid, Msg: err.Error(), Hint: hint}
	}
	return &remit.Error{Code: e.Code, Msg: err.Error(), Hint: cmp.Or(e.Hint, hint), ID: e.ID} // err may join several
}

func changed(old *revision, set *config.Set) []string {
	var before map[string][]byte
	if old != nil {
		before = old.set.Files
	}
	var out []string
	for name, b := range set.Files {
		if string(before[name]) != string(b) {
			out = append(out, name)
		}
	}
	for name := range before {
		if _, ok := set.Files[name]; !ok {
			out = append(out, name+" (removed)")
		}
	}
	slices.Sort(out)
	return out
}

type policyData struct {
	Revision  remit.Digest         `json:"revision"`
	Workflows int                  `json:"workflows"`
	Agents    int                  `json:"agents"`
	Previous  remit.Digest         `json:"previous,omitempty"`
	Version   uint64               `json:"version,omitempty"`  // of the bundle; none: unsigned
	Manifest  remit.Digest         `json:"manifest,omitempty"` // of that version
	Signers   []string             `json:"signers,omitempty"`
	Ceiling   *ceilingData         `json:"ceiling,omitempty"`
	Changes   []remit.PolicyChange `json:"changes,omitempty"`
	More      int                  `json:"more_changes,omitempty"` // beyond what an event holds
}

type ceilingData struct {
	Digest  remit.Digest `json:"digest"`
	Version uint64       `json:"version,omitempty"`
	Signers []string     `json:"signers,omitempty"`
}

const (
	maxEventChanges = 100
	maxChangeText   = 200
)

func (s *Server) commitRevision(ctx context.Context, c *candidate, a api.Applied, by string, seen uint64) error {
	data := policyData{Revision: c.set.Digest, Workflows: len(c.set.Workflows), Agents: len(c.set.Agents), Previous: a.Previous,
		Version: a.Version, Signers: c.signers}
	if a.Version > 0 {
		data.Manifest = c.revision.Bundle.Manifest
	}
	if c.ceiling != nil {
		data.Ceiling = &ceilingData{c.ceiling.Digest, c.revision.Ceiling.Bundle.Version, c.ceilingSigners}
	}
	for i, change := range a.Changes {
		if i == maxEventChanges {
			data.More = len(a.Changes) - i
			break
		}
		if len(change.Text) > maxChangeText {
			change.Text = strings.ToValidUTF8(change.Text[:maxChangeText], "") + "…"
		}
		data.Changes = append(data.Changes, change)
	}
	body, err := json.Marshal(data)
	if err != nil {
		return err
	}
	row := c.revision
	row.At, row.By = s.now(), by
	_, err = s.store.Commit(ctx, remit.Change{
		Rows:    []remit.Row{row},
		Events:  []remit.Event{{At: s.now(), Kind: remit.EventPolicy, By: by, Data: body}},
		Require: []remit.Precondition{{Key: remit.PolicyKey, Epoch: seen}},
	})
	return err
}

// endRemoved ends the leases of agents and targets that the revision does not have; what is not confirmed in a few seconds,
// the broker goes on with.
func (s *Server) endRemoved(ctx context.Context, next *revision, by string) int {
	n := 0
	s.endOf(ctx, func(l *remit.Lease) bool {
		_, agent := next.set.Agents[l.Agent]
		_, target := next.targets[l.Target]
		if !agent || !target {
			n++
		}
		return !agent || !target
	}, "its agent or target was removed", by)
	return n
}

// recheckAll judges every live grant by the revision that was activated. At a start that waits until the server runs: it may
// take as long as the slowest source.
func (s *Server) recheckAll(ctx context.Context, starting bool, by string) int {
	if starting {
		s.rechecks.ask("")
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	return s.recheck(ctx, by, func(*remit.Grant) bool { return true })
}

// planOf returns the plan of any revision that was ever active, to explain its decisions.
func (s *Server) planOf(digest remit.Digest) (*policy.Plan, error) {
	if r := s.rev.Load(); digest == "" || r.set.Digest == digest {
		return r.plan, nil
	}
	stored, ok := s.store.Revision(digest)
	if !ok {
		return nil, notFound("revision", string(digest))
	}
	set, err := config.Parse(stored.Files, s.td)
	if err != nil {
		return nil, fmt.Errorf("read revision %s: %w", digest, err)
	}
	return compile(set, 0, nil, nil)
}

// returned reports whether a call of a run under a permission returned a value at a path.
type returned func(run remit.RunID, permission, path string, v remit.Value) bool

// compile makes the plan of a configuration.
func compile(set *config.Set, epoch uint64, parent func(remit.DecisionID) (remit.Decision, bool), from returned) (*policy.Plan, error) {
	cfg := policy.Config{Workflows: set.Workflows, Digest: set.Digest, Epoch: epoch, Parent: parent, From: from,
		Agents: slices.Collect(maps.Keys(set.Agents)), Targets: slices.Collect(maps.Keys(set.Targets))}
	for name := range set.Agents { // a tool is a target of mcp.call
		if tool, ok := strings.CutPrefix(string(name), "tool/"); ok {
			cfg.Targets = append(cfg.Targets, tool)
		}
	}
	for name, o := range set.Targets {
		if o.Production {
			cfg.Production = append(cfg.Production, name)
		}
	}
	cfg.Rules = rulesOf(set)
	return policy.Compile(cfg)
}

func (s *Server) opApply(ctx context.Context, c admin.Call) (any, error) {
	return s.activate(ctx, c.Who.String(), c.Query.Get("dry_run") == "true")
}

func (s *Server) opExport(context.Context, admin.Call) (any, error) {
	return s.rev.Load().plan.Export(), nil
}

func (s *Server) opWorkflows(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	out := []api.Workflow{}
	for _, w := range s.rev.Load().workflows {
		if w.Name > after {
			out = append(out, workflowView(w))
		}
	}
	slices.SortFunc(out, func(a, b api.Workflow) int { return strings.Compare(a.Name, b.Name) })
	return listed(out[:min(limit, len(out))], limit, func(w api.Workflow) string { return w.Name }), nil
}

func (s *Server) opWorkflow(_ context.Context, c admin.Call) (any, error) {
	w, ok := s.rev.Load().workflow(c.Path("name"))
	if !ok {
		return nil, notFound("workflow", c.Path("name"))
	}
	return workflowView(w), nil
}

func workflowView(w *remit.Workflow) api.Workflow {
	out := api.Workflow{Name: w.Name, Digest: w.Digest, Parameters: []string{}}
	for _, p := range w.Parameters {
		out.Parameters = append(out.Parameters, p.Name+": "+p.Type)
	}
	for _, st := range w.Stages {
		v := api.Stage{Name: st.Name, May: []string{}}
		for _, m := range st.May {
			v.May = append(v.May, fmt.Sprintf("%s: %s %s %s", m.Name, m.Who, m.Action, m.Target))
		}
		out.Stages = append(out.Stages, v)
	}
	return out
}
