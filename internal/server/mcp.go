// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/mcp"
	"remit/internal/run"
	"remit/internal/tool"
)

func (s *Server) newMCP(agents *gateway.Quota) (*mcp.Handler, error) {
	return mcp.New(mcp.Config{Base: s.baseURL(), Line: line{s}, Authenticator: s.auth, RunTokens: s, AccessTokens: s, Directory: s.registry,
		Stages: s, Tools: tools{s}, Result: s.keepResult, Answered: s.answered, Quota: agents, Log: s.log, Now: s.now})
}

// Executed implements mcp.Line.
func (l line) Executed(ctx context.Context, acts []remit.Outcome) error {
	return l.s.authorizer.Executed(ctx, acts)
}

// Visible implements mcp.Stages.
func (s *Server) Visible(req *remit.Request) (mcp.View, []remit.Reason) {
	r, reasons := s.authorizer.Stands(req)
	if len(reasons) > 0 {
		return mcp.View{}, reasons
	}
	w, ok := s.rev.Load().workflow(r.Workflow)
	if !ok || w.Digest != r.Digest {
		return mcp.View{}, []remit.Reason{{Code: remit.ReasonWorkflowChanged}}
	}
	v := mcp.View{Stage: r.Stage, Call: map[string]bool{}, List: map[string]bool{}}
	for _, st := range w.Stages {
		if st.Name != r.Stage {
			continue
		}
		for i := range st.May {
			switch p := &st.May[i]; {
			case p.Who != req.Agent || p.Under != "":
			case p.Action == "mcp.call":
				v.Call[p.Target] = true
			case strings.HasPrefix(p.Action, "mcp."): // reading and prompting need the server, too; what a list shows is mcp.list's
				v.List[p.Target] = v.List[p.Target] || p.Action == "mcp.list"
			}
		}
	}
	return v, nil
}

// tools opens the servers of tools.
type tools struct{ s *Server }

// Open implements mcp.Tools.
func (t tools) Open(ctx context.Context, c mcp.Claim) (*mcp.Server, error) {
	rev := t.s.rev.Load()
	if srv, ok := rev.remotes[c.Tool]; ok {
		return srv, nil
	}
	local, ok := rev.set.Tools[c.Tool]
	if !ok {
		return nil, notFound("server of", string(c.Tool))
	}
	held, err := t.s.claims.Open(ctx, tool.Claim(c), &local)
	if err != nil {
		return nil, err
	}
	return &mcp.Server{ID: string(held.ID()), Origin: rev.origins[c.Tool], Pipe: func() (mcp.Pipe, error) { return held, nil }, Turn: held.Turn}, nil
}

// buildTools reads the pins of tools and prepares the clients of those at addresses. A rule that names an argument which a pinned
// tool does not have would deny for ever, or bind nothing: it is an error.
func (r *revision) buildTools() error {
	r.remotes, r.pins, r.origins = map[remit.Name]*mcp.Server{}, map[remit.Name]*mcp.Pins{}, map[remit.Name]remit.Digest{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(r.set.Tools)) {
		t := r.set.Tools[name]
		r.origins[name] = t.Origin()
		if t.Pins != "" {
			p, err := mcp.ParsePins(r.set.Files[t.Pins])
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", t.Line, t.Pins, err))
				continue
			}
			r.pins[name] = p
			for _, m := range r.misfits(name, p) {
				errs = append(errs, m.err)
			}
		}
		if t.URL != "" {
			c, err := remoteClient(t.CA)
			errs = append(errs, err)
			r.remotes[name] = &mcp.Server{ID: t.URL + " " + t.CA, Origin: r.origins[name], URL: t.URL, HTTP: c}
		}
	}
	return errors.Join(errs...)
}

func remoteClient(ca string) (*http.Client, error) {
	roots, err := rootsOf(ca)
	if err != nil {
		return nil, fmt.Errorf("read the roots of a tool's server: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	return &http.Client{
		Transport: &http.Transport{Proxy: nil, TLSClientConfig: cfg, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// AccessToken implements mcp.AccessTokens. What a launch was given ends with it.
func (s *Server) AccessToken(token, audience string, at time.Time) (remit.Principal, remit.RunID, error) {
	p, id, err := s.access.AccessToken(token, audience, at)
	if err != nil {
		return p, id, err
	}
	if p.Launch != "" {
		l, ok := s.store.Launch(p.Launch)
		//remit:guard S10 TestMCPAccessToken
		if !ok || !l.Ended.IsZero() {
			return remit.Principal{}, "", &remit.Error{Code: remit.CodeUnauthenticated, Msg: "the launch that this token is of has ended"}
		}
	}
	return p, id, nil
}

// Audience implements token.Access: all addresses of the MCP gateway are one.
func (s *Server) Audience(resource string) (string, bool) {
	at := s.baseURL() + "/mcp"
	return at, resource == at || strings.HasPrefix(resource, at+"/")
}

type accessData struct {
	Op       string    `json:"op"`
	Token    string    `json:"token"` // its id
	Audience string    `json:"audience"`
	Expires  time.Time `json:"expires"`
}

// Access implements token.Access: an agent that is active in the run's present stage gets a token, once that is on record.
func (s *Server) Access(ctx context.Context, client remit.Principal, agent remit.Name, id remit.RunID, audience string, at time.Time) (remit.Secret, time.Time, error) {
	none := func(err error) (remit.Secret, time.Time, error) { return remit.Secret{}, time.Time{}, err }
	r, reasons := s.authorizer.Stands(&remit.Request{At: at, Caller: client, Agent: agent, Run: id})
	if len(reasons) > 0 {
		return none(&remit.Error{Code: remit.CodeForbidden, Msg: string(reasons[0].Code)})
	}
	w, ok := s.rev.Load().workflow(r.Workflow)
	//remit:guard S10 TestMCPAccessToken
	if !ok || !run.Active(&r, w, agent) {
		return none(&remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s does nothing in stage %s", agent, r.Stage)})
	}
	token, name, expires, err := s.access.Issue(client, &r, audience, at)
	if err != nil {
		return none(err)
	}
	body, err := json.Marshal(accessData{"access_token", name, audience, expires})
	if err != nil {
		return none(err)
	}
	if err := s.record(ctx, remit.Event{At: at, Kind: remit.EventAdmin, Agent: agent, Run: id, By: client.String(), Data: body}); err != nil {
		return none(err)
	}
	return token, expires, nil
}
