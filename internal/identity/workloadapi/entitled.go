// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"remit"
	"remit/internal/identity"
)

// entitled is an identity that the caller has, and what is known about the caller.
type entitled struct {
	agent    remit.Agent
	launch   remit.LaunchID
	level    remit.Level
	workload map[string]string
}

// key tells apart what must not share an SVID: records say who holds it and how well that is known (S8). The agent's ID and
// lifetime are part of it, so that a changed file has its effect at once.
func (e *entitled) key(more ...string) string {
	parts := []string{string(e.agent.Name), e.agent.ID.String(), e.agent.TTL.String(), string(e.launch), e.level.String()}
	for _, k := range []string{"uid", "gid", "path", "sha256"} {
		parts = append(parts, e.workload[k])
	}
	return strings.Join(append(parts, more...), "\x00")
}

func callerOf(ctx context.Context) (*caller, error) {
	p, ok := peer.FromContext(ctx)
	if ok {
		if c, ours := p.AuthInfo.(*caller); ours {
			return c, nil
		}
	}
	return nil, status.Error(codes.PermissionDenied, "the caller is not known")
}

// entitled attests the caller as it is now and returns the identities that it has, by name; at least one, or an error with the
// code that clients expect: PermissionDenied for no identity, Unavailable where the caller cannot be attested.
func (s *Server) entitled(ctx context.Context) ([]entitled, error) {
	c, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	var out []entitled
	switch {
	case c.bound != nil && c.bound.Sandbox != nil:
		out, err = s.entitledBySandbox(c)
	// What runs as an operator is that operator on the admin socket, so it is no agent (S2). A tool in a sandbox has no such socket.
	//remit:guard S2 TestOperatorsProcessIsNoAgent
	case s.cfg.Operator(c.peer.UID) && !s.cfg.AllowOwnUID:
		return nil, status.Error(codes.PermissionDenied, "no identity: processes of an operator's user are no agents")
	case c.bound != nil:
		out, err = s.entitledByLaunch(c)
	default:
		out, err = s.entitledBySelectors(c)
	}
	if err != nil {
		return nil, err
	}
	//remit:guard S20 TestSuspensionEndsStreams
	out = slices.DeleteFunc(out, func(e entitled) bool { return !s.cfg.Allowed(e.agent.Name) })
	if len(out) == 0 {
		return nil, status.Error(codes.PermissionDenied, "no identity: no agent's file attests this process, or the agent is suspended")
	}
	return out, nil
}

// entitledBySandbox takes the socket for the identity: nobody but the tool in the sandbox reaches it (S27).
func (s *Server) entitledBySandbox(c *caller) ([]entitled, error) {
	b := c.bound
	select {
	case <-b.done:
		return nil, status.Error(codes.PermissionDenied, "no identity: the sandbox has ended")
	default:
	}
	if b.Sandbox.Admit != nil {
		//remit:guard S27 TestSocketOfASandbox
		if err := b.Sandbox.Admit(c.peer.PID); err != nil {
			s.cfg.Log.Warn("workload API: a process is not of the sandbox whose socket it uses", "launch", b.Launch, "pid", c.peer.PID, "err", err)
			return nil, status.Error(codes.PermissionDenied, "no identity: this process is not in the sandbox")
		}
	}
	agent, ok := s.cfg.Registry.Named(b.Agent)
	if !ok || !agent.ID.MemberOf(s.cfg.Authority.TrustDomain()) {
		return nil, status.Error(codes.PermissionDenied, "no identity: the tool is not configured")
	}
	return []entitled{{agent: agent, launch: b.Launch, level: remit.LevelSandbox, workload: b.Sandbox.Workload}}, nil
}

// entitledByLaunch takes the socket for the identity, and the process for the right to use it (S4).
func (s *Server) entitledByLaunch(c *caller) ([]entitled, error) {
	select {
	case <-c.bound.done:
		return nil, status.Error(codes.PermissionDenied, "no identity: the launch has ended")
	default:
	}
	agent, ok := s.cfg.Registry.Named(c.bound.Agent)
	if !ok || !agent.ID.MemberOf(s.cfg.Authority.TrustDomain()) {
		return nil, status.Error(codes.PermissionDenied, "no identity: the agent is not configured")
	}
	w, err := s.attestor.Attest(c.peer, identity.WithPath)
	if err != nil {
		return nil, s.unattested(c, err)
	}
	//remit:guard S4 TestBoundSocket
	if err := c.bound.admits(c.peer); err != nil {
		s.cfg.Log.Warn("workload API: a process is not of the launch whose socket it uses", "launch", c.bound.Launch, "pid", c.peer.PID, "err", err)
		return nil, status.Error(codes.PermissionDenied, "no identity: this process was not launched with this socket")
	}
	if agent.Launch == nil {
		return nil, status.Error(codes.PermissionDenied, "no identity: the agent's file lets nobody launch it any more")
	}
	if err := c.bound.runs(agent.Launch.Commands); err != nil {
		s.cfg.Log.Warn("workload API: the launched process does not run what it was launched for", "launch", c.bound.Launch, "pid", c.peer.PID, "err", err)
		return nil, status.Error(codes.PermissionDenied, "no identity: the launched process does not run what the agent's file lists")
	}
	//remit:guard S4 TestBoundSocketOfAnotherUser
	if agent.Launch.OwnUID && agent.Launch.UID != w.UID {
		return nil, status.Error(codes.PermissionDenied, "no identity: the process runs as another user than the agent's file says")
	}
	level := remit.LevelLaunched
	//remit:guard S3 TestLaunchedUnderTheServersUser
	if w.Level == remit.LevelNone {
		level = remit.LevelNone // under the server's own user, nothing keeps it from the server's keys (S3)
	}
	return []entitled{{agent: agent, launch: c.bound.Launch, level: level, workload: w.Map()}}, nil
}

func (s *Server) entitledBySelectors(c *caller) ([]entitled, error) {
	depth := identity.Credentials
	var agents []remit.Agent
	for _, a := range s.cfg.Registry.Agents() {
		if len(a.Attest) > 0 && a.ID.MemberOf(s.cfg.Authority.TrustDomain()) {
			agents = append(agents, a)
			depth = max(depth, identity.DepthOf(a.Attest))
		}
	}
	w, err := s.attestor.Attest(c.peer, depth)
	if err != nil {
		return nil, s.unattested(c, err)
	}
	var out []entitled
	for _, a := range agents {
		//remit:guard S3 TestSelectors
		if w.Holds(a.Attest) {
			out = append(out, entitled{agent: a, level: w.Level, workload: w.Map()})
		}
	}
	return out, nil
}

func (s *Server) unattested(c *caller, err error) error {
	s.cfg.Log.Warn("workload API: a caller cannot be attested", "pid", c.peer.PID, "uid", c.peer.UID, "err", err)
	return status.Error(codes.Unavailable, "the calling process could not be attested")
}

// The security header keeps a process that can be made to send requests elsewhere (SSRF) from reaching the API
// (SPIFFE_Workload_Endpoint, section 6.2): exactly one value, case-sensitive.
const (
	securityHeader = "workload.spiffe.io"
	apiPrefix      = "/SpiffeWorkloadAPI/"
)

func checkHeader(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, apiPrefix) {
		return nil // reflection
	}
	md, _ := metadata.FromIncomingContext(ctx)
	//remit:guard S1 TestCodes
	if v := md.Get(securityHeader); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "the security header workload.spiffe.io: true is missing")
	}
	return nil
}

func checkUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkHeader(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func checkStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkHeader(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}

// asStatus turns errors of minting and recording into what a client may know; the cause goes to the log.
func (s *Server) asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	s.cfg.Log.Error("workload API: no SVID", "err", err)
	return status.Error(codes.Unavailable, "no SVID can be made at this moment")
}
