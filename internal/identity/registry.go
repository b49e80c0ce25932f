// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// ReservedPath is where the identities of Remit itself stand, in every trust domain. No agent, tool or enforcement point can
// be configured there.
const ReservedPath = "/remit"

// ServerPath is the path of the server's own identity.
const ServerPath = ReservedPath + "/server"

// Registry holds the configured identities of the active revision. It is safe for concurrent use; readers never wait.
type Registry struct {
	signal  Signal
	entries atomic.Pointer[entries]
}

// entries never change after they are stored.
type entries struct {
	agents []remit.Agent // sorted by name
	byID   map[spiffeid.ID]remit.Agent
	byName map[remit.Name]remit.Agent
	peps   map[spiffeid.ID]remit.EnforcementPoint
}

// NewRegistry returns an empty registry: everybody is unknown.
func NewRegistry() *Registry {
	r := &Registry{}
	r.entries.Store(&entries{})
	return r
}

// Replace publishes a whole new set at once and wakes whoever waits on Changed. On error (CodeInvalid: an ID without path or
// below ReservedPath, or a name or ID that occurs twice) the old set stays. The caller must not change the slices after.
func (r *Registry) Replace(agents []remit.Agent, points []remit.EnforcementPoint) error {
	e := &entries{agents: slices.Clone(agents), byID: map[spiffeid.ID]remit.Agent{}, byName: map[remit.Name]remit.Agent{},
		peps: map[spiffeid.ID]remit.EnforcementPoint{}}
	for _, a := range agents {
		if _, twice := e.byName[a.Name]; twice {
			return invalid("%s is configured twice", a.Name)
		}
		if err := e.admit(a.ID); err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		e.byID[a.ID], e.byName[a.Name] = a, a
	}
	for _, p := range points {
		if err := e.admit(p.ID); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		e.peps[p.ID] = p
		if len(p.Attest) > 0 { // the Workload API serves it; it is no agent otherwise
			e.agents = append(e.agents, remit.Agent{Name: p.Name, ID: p.ID, Attest: p.Attest})
		}
	}
	slices.SortFunc(e.agents, func(a, b remit.Agent) int { return strings.Compare(string(a.Name), string(b.Name)) })
	r.entries.Store(e)
	r.signal.Notify()
	return nil
}

// admit reports whether the ID may be given to somebody who is not there yet.
func (e *entries) admit(id spiffeid.ID) error {
	if id.IsZero() || id.Path() == "" {
		return invalid("the SPIFFE ID %q has no path", id)
	}
	reserved, err := spiffeid.FromPath(id.TrustDomain(), ReservedPath)
	if err != nil || spiffeid.MatchIDPrefix(reserved)(id) == nil {
		return invalid("the SPIFFE ID %s is reserved for Remit itself", id)
	}
	_, agent := e.byID[id]
	_, pep := e.peps[id]
	if agent || pep {
		return invalid("the SPIFFE ID %s is given twice", id)
	}
	return nil
}

// Agent returns the name of the agent or tool with exactly this ID.
func (r *Registry) Agent(id spiffeid.ID) (remit.Name, bool) {
	a, ok := r.entries.Load().byID[id]
	return a.Name, ok
}

// Named returns the agent or tool of that name.
func (r *Registry) Named(n remit.Name) (remit.Agent, bool) {
	a, ok := r.entries.Load().byName[n]
	return a, ok
}

// EnforcementPoint returns the enrolled enforcement point with exactly this ID.
func (r *Registry) EnforcementPoint(id spiffeid.ID) (remit.EnforcementPoint, bool) {
	p, ok := r.entries.Load().peps[id]
	return p, ok
}

// Agents returns everybody whom the Workload API may serve: agents, tools, and enforcement points that can be attested, in the
// order of their names. The slice is shared: it must not be changed.
func (r *Registry) Agents() []remit.Agent { return r.entries.Load().agents }

// Changed returns a channel that is closed when another set is published, or Notify is called.
func (r *Registry) Changed() <-chan struct{} { return r.signal.Changed() }

// Notify wakes whoever waits on Changed, for changes of standing that the registry does not hold: a suspension.
func (r *Registry) Notify() { r.signal.Notify() }

func invalid(format string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf(format, args...)}
}
