// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway"
	"remit/internal/run"
)

// What agents may do with runs over HTTPS, each with its own SVID: the admin socket is for persons. The workflow decides who
// may start a run, leave a stage and finish.
func (s *Server) agentRoutes(mux *http.ServeMux) {
	quota := gateway.NewQuota(limitsOf(s.cfg.Quotas.Runs))
	mux.HandleFunc("POST /v1/runs", s.asAgent("run.start", quota, s.agentStarts))
	mux.HandleFunc("POST /v1/runs/{id}/advance", s.asAgent("run.advance", quota, s.agentAdvances))
	mux.HandleFunc("POST /v1/runs/{id}/finish", s.asAgent("run.finish", quota, s.agentFinishes))
}

// asAgent verifies the caller, lets do act as it, and writes the answer or the error. What changes a run is recorded with the
// change; a refusal is recorded here.
func (s *Server) asAgent(op string, quota *gateway.Quota, do func(*http.Request, []byte, run.Actor) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store") // an answer may hold a run token
		by, err := s.actor(r)
		if err != nil {
			s.writeAgentError(w, r, err)
			return
		}
		body, err := gateway.ReadBody(w, r, gateway.MaxBody)
		if err != nil {
			s.writeAgentError(w, r, err)
			return
		}
		account, ok := quota.Enter(string(by.Name), len(body), s.now())
		//remit:guard S35 TestAgentCallsAreBounded,TestBytesOfRunsAreCounted
		if !ok {
			quota.Brake(r.Context())
			s.writeAgentError(w, r, &remit.Error{Code: remit.CodeExhausted, Msg: "more calls than this agent's quota", Hint: "ask again in a second"})
			return
		}
		defer account.Leave()
		out, err := do(r, body, by)
		if err != nil {
			s.recordRefusal(r, op, by, err)
			s.writeAgentError(w, r, err)
			return
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

type refusalData struct {
	Op      string     `json:"op"`
	Run     string     `json:"run,omitempty"`
	Outcome remit.Code `json:"outcome"`
}

// recordRefusal writes down what an agent was refused by its standing, not its mistakes.
func (s *Server) recordRefusal(r *http.Request, op string, by run.Actor, err error) {
	code := remit.CodeOf(err)
	if code != remit.CodeForbidden && code != remit.CodeUnauthenticated {
		return
	}
	body, _ := json.Marshal(refusalData{op, fmt.Sprintf("%.40s", r.PathValue("id")), code}) // three strings
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
	defer cancel()
	e := remit.Event{At: s.now(), Kind: remit.EventAdmin, Agent: by.Name, By: by.Principal.String(), Data: body}
	if err := s.record(ctx, e); err != nil {
		s.log.Error("a refused call of an agent is not on record", "op", op, "agent", by.Name, "err", err)
	}
}

func (s *Server) actor(r *http.Request) (run.Actor, error) {
	p, err := gateway.Caller(r, s.auth, s.now())
	if err != nil {
		return run.Actor{}, err
	}
	name, ok := s.registry.Agent(p.ID)
	//remit:guard S20 TestSuspendedMovesNothing
	if !ok || s.store.Posture(name).Suspended {
		return run.Actor{}, &remit.Error{Code: remit.CodeForbidden, Msg: "the agent is unknown or suspended"}
	}
	return run.Actor{Name: name, Principal: p}, nil
}

func (s *Server) writeAgentError(w http.ResponseWriter, r *http.Request, err error) {
	if remit.CodeOf(err) == remit.CodeInternal {
		s.log.Error("an agent's call", "path", r.URL.Path, "err", err)
	} else {
		s.log.Debug("an agent's call refused", "path", r.URL.Path, "err", err)
	}
	gateway.WriteError(w, err)
}

// agentStarts starts a run. The token is bound to the caller's launch, else to its certificate; there is none when the caller
// does nothing in the first stage.
func (s *Server) agentStarts(r *http.Request, body []byte, by run.Actor) (any, error) {
	var in api.StartRun
	if err := gateway.DecodeBody(body, &in); err != nil {
		return nil, err
	}
	started, err := s.startRun(r.Context(), in, by)
	if err != nil {
		return nil, err
	}
	out := api.Started{Run: started.Shown()}
	w, ok := s.rev.Load().workflow(started.Workflow)
	if !ok || !run.Active(&started, w, by.Name) {
		return out, nil
	}
	holder := remit.Holder{Agent: by.Name, Launch: by.Principal.Launch}
	if holder.Launch == "" {
		holder.Thumbprint = by.Principal.Thumbprint
	}
	token, err := s.issueRunToken(&started, holder)
	out.Token = &token
	return out, err
}

// ownRun is the run of the request's run token, which must be the one that the path names.
func (s *Server) ownRun(r *http.Request, by run.Actor) (remit.Run, *remit.Workflow, error) {
	id, err := s.RunToken(r.Header.Get("Txn-Token"), by.Principal, s.now())
	if err != nil {
		return remit.Run{}, nil, err
	}
	if string(id) != r.PathValue("id") {
		return remit.Run{}, nil, &remit.Error{Code: remit.CodeForbidden, Msg: "the run token is another run's"}
	}
	rn, _ := s.store.Run(id)
	w, ok := s.rev.Load().workflow(rn.Workflow)
	if !ok {
		return rn, nil, notFound("workflow", rn.Workflow)
	}
	return rn, w, nil
}

func (s *Server) agentAdvances(r *http.Request, _ []byte, by run.Actor) (any, error) {
	rn, w, err := s.ownRun(r, by)
	if err != nil {
		return nil, err
	}
	return s.advance(r.Context(), rn, w, by, r.URL.Query().Get("to"))
}

func (s *Server) agentFinishes(r *http.Request, _ []byte, by run.Actor) (any, error) {
	rn, w, err := s.ownRun(r, by)
	if err != nil {
		return nil, err
	}
	return s.finish(r.Context(), rn, w, by)
}
