// SPDX-License-Identifier: Apache-2.0

// Package egress is the only way out of a sandbox: a proxy for each box, on a Unix socket that nobody else can reach, which speaks
// HTTP proxy requests, CONNECT and SOCKS5. Whoever connects is the tool of that box, so a connection proves who it is.
//
// Each request is decided by the line under the call that the tool is serving; outside a call there is no way out (S24). The decision
// is about the message that goes upstream, which is built anew from its parsed parts (S29). TLS is ended here with an authority of
// the box's own, so that a path can be decided and a credential injected that the tool never sees (S28). Names are resolved here, and
// the address that was checked is the one that is dialled.
//
// The package never decides by itself that something may pass, never follows a redirect, and never sends a request to an origin that is
// no configured target. A Gate owns its goroutines; Close ends all connections at once and waits.
package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/gateway"
)

// line is the authorizer. An error means that no answer could be recorded, and denies.
type line interface {
	Decide(ctx context.Context, req *remit.Request) (remit.Decision, error)
}

// acts records what was done. All are durable when it returns, or none is.
type acts interface {
	Executed(ctx context.Context, outcomes []remit.Outcome) error
}

// Config are the parts that all boxes share. Quota, Resolve, Log and Now may be left out.
type Config struct {
	Line    line
	Acts    acts
	Targets func() *Targets // of the active revision; asked for every request
	Quota   *gateway.Quota  // of each tool
	// Resolve looks a name up. Default: the host's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	Log     *slog.Logger
	Now     func() time.Time
}

// Box is one sandbox from its claim to its end.
type Box struct {
	Tool      remit.Name
	Principal remit.Principal
	Run       remit.RunID
	Sandbox   remit.Tier
	// Call returns the decision of the call that the tool is serving now, and a channel that is closed when that call ends; false:
	// none, and nothing gets out (S24). What a call opened is cut when it ends. A nil channel is never closed.
	Call func() (id remit.DecisionID, done <-chan struct{}, ok bool)
	// Until bounds the life of the box's authority. Zero: a day.
	Until time.Time
}

// Proxy makes gates. It is safe for concurrent use.
type Proxy struct{ cfg Config }

// New checks cfg.
func New(cfg Config) (*Proxy, error) {
	if cfg.Line == nil || cfg.Acts == nil || cfg.Targets == nil {
		return nil, errors.New("egress: the line, its acts or the targets are missing")
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Proxy{cfg: cfg}, nil
}

// Open makes the gate of a box: its authority first, so that what the tool has to trust is known before the tool starts.
func (p *Proxy) Open(b Box) (*Gate, error) {
	//remit:guard S27 TestBoxNeedsAnIdentity
	if b.Tool == "" || b.Principal.ID.IsZero() || b.Run == "" || b.Call == nil {
		return nil, errors.New("egress: a box has a tool, its identity, a run and its calls")
	}
	now := p.cfg.Now()
	if b.Until.IsZero() {
		b.Until = now.Add(defaultLife)
	}
	var hosts []string
	for _, t := range p.targets() {
		if t.scheme == "https" && !t.tunnel && !slices.Contains(hosts, t.host) {
			hosts = append(hosts, t.host)
		}
	}
	a, err := newAuthority(hosts, b.Until, p.cfg.Now)
	if err != nil {
		return nil, err
	}
	return newGate(p, b, a), nil
}

// Serve is Open and Gate.Serve for a box whose tool needs no certificates.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener, b Box) error {
	g, err := p.Open(b)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	return g.Serve(ctx, ln)
}

func (p *Proxy) targets() []*Target {
	if ts := p.cfg.Targets(); ts != nil {
		return ts.all
	}
	return nil
}

// Bundle is what the tool has to trust, in PEM: the box's authority, and for tunnels to https the roots of those targets.
func (g *Gate) Bundle() []byte {
	out := slices.Clone(g.authority.pem)
	system := false
	for _, t := range g.proxy.targets() {
		if !t.tunnel || t.scheme != "https" {
			continue
		}
		out = append(out, t.rootsPEM...)
		if t.rootsPEM == nil && !system {
			system = true
			out = append(out, systemRoots()...)
		}
	}
	return out
}

func newRequest(b *Box, at time.Time, action, target string, args remit.Args) *remit.Request {
	return &remit.Request{At: at, Caller: b.Principal, Agent: b.Tool, Run: b.Run, Sandbox: b.Sandbox, Action: action, Target: target, Args: args,
		Via: "egress"}
}

// actionOf names what a request with an unknown method asks, too, for the record of its denial.
func actionOf(method string) string {
	if a, ok := methods[method]; ok {
		return a
	}
	if method = strings.ToLower(method); len(method) <= 20 && strings.Trim(method, "abcdefghijklmnopqrstuvwxyz") == "" {
		return "http." + method
	}
	return "http.other"
}
