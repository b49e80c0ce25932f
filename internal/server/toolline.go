// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/token"
	"remit/internal/sandbox/shim"
	"remit/internal/tool"
)

// openTokens gives a tool in a sandbox the token endpoint, over a socket that is its sandbox's alone, and nothing else of Remit: what
// no proxy can inject, such as a login for a database, it asks for with the same SVID and run token as any agent.
func (b *box) openTokens(o tool.Order) error {
	s := b.server
	r, ok := s.store.Run(o.Claim.Run)
	if !ok {
		return notFound("run", string(o.Claim.Run))
	}
	run, err := s.issueRunToken(&r, remit.Holder{Agent: o.Claim.Tool, Launch: o.Launch})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.folder, runTokenFile), []byte(run.Token+"\n"), 0o644); err != nil { //nolint:gosec // as its folder
		return fmt.Errorf("write a tool's run token: %w", err)
	}
	tokens, err := token.New(token.Config{Issuer: s.baseURL(), Line: callLine{line{s}, o.Call}, Authenticator: ownSVID{s.auth}, RunTokens: s, Directory: s.registry,
		Grants: grants{s}, Location: s.location, Actions: s.actions, Quota: s.agents, Log: s.log, Now: s.now})
	if err != nil {
		return err
	}
	l, err := listenUnix(filepath.Join(b.folder, shim.Gateway))
	if err != nil {
		return err
	}
	b.tokens = s.serverOf(tokens, gateway.SandboxConnection(o.Launch))
	b.work.Go(func() {
		if err := b.tokens.ServeTLS(&admitting{l, b}, "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("a tool's way to the token endpoint is shut", "tool", o.Claim.Tool, "sandbox", b.about.Sandbox, "err", err)
		}
	})
	return nil
}

// listenUnix makes a socket of a sandbox. Who connects is asked of the kernel.
func listenUnix(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		err = os.Chmod(path, 0o666) //nolint:gosec // as its folder
	}
	if err != nil {
		return nil, fmt.Errorf("make a socket of a sandbox: %w", err)
	}
	return l, nil
}

// ownSVID knows a tool by the certificate of its connection alone: an assertion could be another's.
type ownSVID struct{ gateway.Authenticator }

// Assertion implements gateway.Authenticator.
func (ownSVID) Assertion(context.Context, string) (remit.Principal, error) {
	return remit.Principal{}, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "over a sandbox's socket the sandbox's X.509-SVID counts"}
}

// callLine is the line as a tool in a sandbox enters it: under the call that it serves, whatever it says itself (S24).
type callLine struct {
	line
	call func() (tool.Call, bool)
}

// Grant implements gateway.Line. What a permission with `under` gives ends with the call.
func (l callLine) Grant(ctx context.Context, req *remit.Request) (gateway.Granted, error) {
	c, ok := l.call()
	//remit:guard S24 TestToolLeases
	if !ok {
		req.Refused = append(req.Refused, remit.Reason{Code: remit.ReasonUnder, Of: "call"})
	}
	req.Under = c.ID
	got, err := l.line.Grant(ctx, req)
	//remit:guard S24 TestToolLeases
	if err == nil && got.Grant.ID != "" && l.s.inCall(got.Grant.Permission) {
		go l.endWith(c.Done, got.Grant.ID)
	}
	return got, err
}

// endWith ends a grant when its call does, and then itself.
func (l callLine) endWith(done <-chan struct{}, id remit.GrantID) {
	<-done
	_ = l.s.endOf(context.Background(), func(lease *remit.Lease) bool { return lease.Grant == id }, "its call ended", "remit") // it is tried again
}

// inCall reports whether a permission stands under another one. One that is not there any more does not.
func (s *Server) inCall(ref remit.PermissionRef) bool {
	w, ok := s.rev.Load().workflow(ref.Workflow)
	if !ok {
		return false
	}
	for _, st := range w.Stages {
		for i := range st.May {
			if st.Name == ref.Stage && st.May[i].Name == ref.Name {
				return st.May[i].Under != ""
			}
		}
	}
	return false
}
