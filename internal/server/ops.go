// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/url"
	"strconv"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
)

// ops is the management API: what each call does stands in the control_*.go files. Roles: author changes policy, responder
// ends authority, approver answers what is held for people, auditor reads the ledger; starting and advancing runs is the workflow's own decision.
func (s *Server) ops() []admin.Op {
	return append(append(s.toolOps(), s.agentOps()...), []admin.Op{
		{Pattern: "GET /v1/status", Name: "status", Do: s.opStatus},
		{Pattern: "POST /v1/apply", Name: "apply", Role: "author", Writes: true, Do: s.opApply},
		{Pattern: "POST /v1/apply/compare", Name: "apply.compare", Role: "author", Writes: true, Do: s.opCompare},
		{Pattern: "GET /v1/doctor", Name: "doctor", Do: s.opDoctor},
		{Pattern: "GET /v1/doctor/{target}", Name: "doctor", Do: s.opDoctor},
		{Pattern: "GET /v1/doctor/{target}/setup", Name: "doctor.setup", Role: "author", Do: s.opSetup},
		{Pattern: "POST /v1/clock/confirm", Name: "clock.confirm", Role: "admin", Writes: true, Do: s.opClockConfirm},
		{Pattern: "POST /v1/backup", Name: "backup", Role: "admin", Writes: true, Local: true, Do: s.opBackup},

		{Pattern: "POST /v1/logout", Name: "session.logout", Writes: true, Do: s.opLogout},
		{Pattern: "GET /v1/sessions", Name: "session.list", Role: "responder", Do: s.opSessions},
		{Pattern: "POST /v1/sessions/{id}/end", Name: "session.end", Role: "responder", Writes: true, Do: s.opSessionEnd},
		{Pattern: "POST /v1/people/{name}/forget", Name: "person.forget", Role: "admin", Writes: true, Do: s.opPersonForget},

		{Pattern: "GET /v1/workflows", Name: "workflow.list", Do: s.opWorkflows},
		{Pattern: "GET /v1/workflows/{name}", Name: "workflow.show", Do: s.opWorkflow},
		{Pattern: "GET /v1/policy/export", Name: "policy.export", Do: s.opExport},
		{Pattern: "GET /v1/policy/revisions/{digest}", Name: "policy.revision", Role: "auditor", Do: s.opRevision},

		{Pattern: "GET /v1/runs", Name: "run.list", Do: s.opRuns},
		{Pattern: "POST /v1/runs", Name: "run.start", Writes: true, Do: s.opRunStart},
		{Pattern: "GET /v1/runs/{id}", Name: "run.show", Do: s.opRun},
		{Pattern: "POST /v1/runs/{id}/advance", Name: "run.advance", Writes: true, Do: s.opRunAdvance},
		{Pattern: "POST /v1/runs/{id}/finish", Name: "run.finish", Writes: true, Do: s.opRunFinish},
		{Pattern: "POST /v1/runs/{id}/token", Name: "run.token", Writes: true, Do: s.opRunToken},

		{Pattern: "POST /v1/launches", Name: "agent.launch", Writes: true, Local: true, Do: s.opLaunch},
		{Pattern: "POST /v1/launches/{id}/pid", Name: "agent.launch.pid", Writes: true, Local: true, Do: s.opLaunchPID},
		{Pattern: "POST /v1/launches/{id}/end", Name: "agent.launch.end", Writes: true, Local: true, Do: s.opLaunchEnd},

		{Pattern: "GET /v1/grants", Name: "grant.list", Do: s.opGrants},
		{Pattern: "GET /v1/grants/{id}", Name: "grant.show", Do: s.opGrant},
		{Pattern: "POST /v1/grants/{id}/revoke", Name: "grant.revoke", Role: "responder", Writes: true, Do: s.opRevoke},
		{Pattern: "POST /v1/grants/{id}/verify", Name: "grant.verify", Role: "responder", Writes: true, Do: s.opVerify},

		{Pattern: "GET /v1/evidence", Name: "evidence.list", Do: s.opEvidenceList},
		{Pattern: "POST /v1/evidence", Name: "evidence.add", Writes: true, Do: s.opEvidenceAdd},
		{Pattern: "GET /v1/evidence/{id}", Name: "evidence.show", Do: s.opEvidence},

		{Pattern: "GET /v1/approvals", Name: "approval.list", Do: s.opApprovals},
		{Pattern: "GET /v1/approvals/{id}", Name: "approval.show", Do: s.opApproval},
		{Pattern: "POST /v1/approvals/{id}/approve", Name: "approval.approve", Role: "approver", Writes: true, Do: s.opApprove},
		{Pattern: "POST /v1/approvals/{id}/deny", Name: "approval.deny", Role: "approver", Writes: true, Do: s.opDeny},

		{Pattern: "GET /v1/ledger", Name: "ledger.list", Role: "auditor", Do: s.opEntries},
		{Pattern: "GET /v1/ledger/{seq}", Name: "ledger.show", Role: "auditor", Do: s.opEntry},
		{Pattern: "GET /v1/ledger/{seq}/proof", Name: "ledger.prove", Role: "auditor", Do: s.opProve},
		{Pattern: "POST /v1/ledger/{seq}/check", Name: "ledger.check", Role: "auditor", Writes: true, Do: s.opCheck},
		{Pattern: "POST /v1/ledger/erase", Name: "ledger.erase", Role: "admin", Writes: true, Do: s.opErase},
		{Pattern: "GET /v1/why/{id}", Name: "why", Do: s.opWhy},
	}...)
}

// agentOps are the calls about agents and what they did.
func (s *Server) agentOps() []admin.Op {
	return []admin.Op{
		{Pattern: "GET /v1/agents", Name: "agent.list", Do: s.opAgents},
		{Pattern: "GET /v1/agents/{kind}/{name}", Name: "agent.show", Do: s.opAgent},
		{Pattern: "GET /v1/agents/{kind}/{name}/blast-radius", Name: "agent.blast-radius", Role: "responder", Do: s.opBlastRadius},
		{Pattern: "POST /v1/agents/{kind}/{name}/suspend", Name: "agent.suspend", Role: "responder", Writes: true, Do: s.opSuspend},
		{Pattern: "POST /v1/agents/{kind}/{name}/reinstate", Name: "agent.reinstate", Role: "responder", Writes: true, Do: s.opReinstate},
		{Pattern: "GET /v1/findings", Name: "finding.list", Do: s.opFindings},
		{Pattern: "GET /v1/findings/{id}", Name: "finding.show", Do: s.opFinding},
		{Pattern: "POST /v1/findings/{id}/close", Name: "finding.close", Role: "responder", Writes: true, Do: s.opFindingClose},
	}
}

// toolOps are the calls about tools and what they run in.
func (s *Server) toolOps() []admin.Op {
	return []admin.Op{
		{Pattern: "GET /v1/tools", Name: "tool.list", Do: s.opTools},
		{Pattern: "GET /v1/tools/{name}", Name: "tool.show", Do: s.opTool},
		{Pattern: "GET /v1/sandboxes", Name: "sandbox.list", Do: s.opSandboxes},
		{Pattern: "GET /v1/sandboxes/{id}", Name: "sandbox.show", Do: s.opSandbox},
		{Pattern: "GET /v1/tools/{name}/review", Name: "tool.review", Role: "author", Do: s.opToolReview},
	}
}

// page reads limit and after: 1 to 1000 items, 100 by default.
func page(q url.Values) (limit int, after string, err error) {
	limit = 100
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > 1000 {
			return 0, "", &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("limit %.20q is not 1 to 1000", text)}
		}
	}
	return limit, q.Get("after"), nil
}

// listed makes a page of items; next is the id of the last one when the page is full.
func listed[T any](items []T, limit int, id func(T) string) api.List[T] {
	l := api.List[T]{Items: items}
	if items == nil {
		l.Items = []T{}
	}
	if len(items) == limit && limit > 0 {
		l.Next = id(items[len(items)-1])
	}
	return l
}

// listing says how each noun that may be missing is listed.
var listing = map[string]string{
	"agent":              "remit agent list",
	"approval":           "remit approval list",
	"decision":           "remit ledger list --kind decision",
	"evidence":           "remit evidence list",
	"finding":            "remit finding list",
	"grant":              "remit grant list",
	"launch":             "remit ledger list --kind agent.launch",
	"lease":              "remit grant list",
	"ledger entry":       "remit ledger list",
	"person":             "remit login list",
	"revision":           "remit ledger list --kind policy.activated",
	"run":                "remit run list",
	"sandbox":            "remit sandbox list",
	"server of":          "remit tool list",
	"session":            "remit login list",
	"target":             "remit doctor",
	"tool":               "remit tool list",
	"tool with a server": "remit tool list",
	"workflow":           "remit workflow list",
}

func notFound(what, id string) error {
	e := &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no %s %.80q", what, id)}
	if l := listing[what]; l != "" {
		e.Hint = l + " shows them"
	}
	return e
}

func (s *Server) opStatus(_ context.Context, c admin.Call) (any, error) {
	st := s.status()
	st.You, st.Roles, st.Expires = c.Who.String(), c.Who.Roles, c.Who.Expires
	return st, nil
}
