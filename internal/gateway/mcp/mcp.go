// SPDX-License-Identifier: Apache-2.0

// Package mcp is the MCP gateway: an agent's client speaks the Model Context Protocol to it, in the era that the client knows,
// and behind it stands one server per tool, in the era that the server knows.
//
//	POST, GET, DELETE /mcp         every tool that the agent's stage shows, each call decided
//	POST, GET, DELETE /mcp/NAME    one tool's server alone, with its resources and prompts
//	GET /.well-known/oauth-protected-resource/mcp[/NAME]   metadata (RFC 9728)
//
// The two eras are the sessions of up to 2025-11-25 (initialize, Mcp-Session-Id, requests of the server to the client) and the
// stateless requests of 2026-07-28 (everything in _meta, input_required). The header MCP-Protocol-Version tells them apart.
//
// Nothing of a client's message is passed on as it came. It is parsed once, strictly; what it asks becomes a remit.Request; and
// the message that goes upstream is written from what was decided (S29): the arguments in canonical form, without nulls, which
// policy counts as absent. Neither the client's headers nor its tokens go upstream. What the gateway does not understand it
// refuses.
//
// A caller proves who it is with an X.509-SVID and its run with a run token in Txn-Token, or both with one access token that is
// made for this gateway, in Authorization.
//
// The package starts one goroutine per connection to a server and per suspended call; Close ends and awaits them.
package mcp

import (
	"context"
	"crypto/cipher"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"remit"
	"remit/internal/gateway"
)

// Bounds of what is read and kept.
const (
	maxBody      = 1 << 20  // of a client's message
	maxArguments = 64 << 10 // of a call's arguments: those of remit.Value, so that what was decided can be read again
	maxMessage   = 16 << 20 // of a server's message
	maxTools     = 1000     // of one server
	maxSessions  = 64       // of one agent, in sessionful eras
	maxAll       = 4096     // sessions of everybody
	maxFlights   = 16       // suspended calls of one agent
)

// Tools opens the servers of tools; internal/tool implements it. It is safe for concurrent use.
type Tools interface {
	// Open returns the server of the tool for the run and its present stage, started if need be. An error of
	// remit.CodeNotFound means that the tool has no server.
	Open(ctx context.Context, c Claim) (*Server, error)
	// Pins are what the server of the tool is held to: what was reviewed, or what was read of it first; nil: nothing was read yet.
	Pins(tool remit.Name) *Pins
	// First remembers, durably, what a server says of its tools that was read for the first time, and returns what it is held to from
	// now on: of two first lists one counts. After an error nothing of the list may be shown or called.
	First(ctx context.Context, tool remit.Name, s *Server, now *Pins) (*Pins, error)
}

// Claim is to whom a server belongs while it is used: a sandbox belongs to one run, stage and tool.
type Claim struct {
	Tool  remit.Name
	Run   remit.RunID
	Stage string
}

// Server is a started MCP server. It has either a URL or a Pipe.
type Server struct {
	// ID is of this very process or address: another ID, another server, and sessions with the old one are over.
	ID string
	// Origin is of what runs or where it is: what was read first of another origin does not count. The gateway hands it back in First.
	Origin remit.Digest
	// URL is the Streamable HTTP address, reached by HTTP. HTTP follows no redirects and adds whatever the server wants to see.
	URL  string
	HTTP *http.Client
	// Pipe returns the server's standard input and output; it is called once per Server.
	Pipe func() (Pipe, error)
	// Turn waits until no other call is in progress and says under which decision the next one is (S24); leave ends it. Nil:
	// the calls of a Pipe go one after another, without anybody being told.
	Turn func(ctx context.Context, d *remit.Decision) (leave func(), err error)
}

// Pipe carries newline-delimited messages. Close ends the server's input and makes a Read that waits return.
type Pipe interface {
	Read(b []byte) (int, error)
	Write(b []byte) (int, error)
	Close() error
}

// Stages says what an agent may see in its run's present stage: from memory, and recorded nowhere. It is safe for concurrent use.
type Stages interface {
	// Visible returns the stage and the targets that the request's agent may see there: those of its permissions for mcp.call and
	// mcp.list, NAME or NAME/TOOL. If it may see nothing whatever it asks, it returns why.
	Visible(req *remit.Request) (View, []remit.Reason)
}

// View is what an agent sees in a stage.
type View struct {
	Stage string
	Call  map[string]bool // targets of mcp.call
	List  map[string]bool // targets of mcp.list
}

// AccessTokens verifies access tokens; internal/run implements it.
type AccessTokens interface {
	// AccessToken returns the principal and run that a token for this audience stands for, alive at the time given (S10).
	AccessToken(token, audience string, at time.Time) (remit.Principal, remit.RunID, error)
}

// Config is what a Handler needs; Base, Line, Authenticator, RunTokens, Directory, Stages and Tools are required.
type Config struct {
	Base          string // the server's https address, without trailing slash; the resource is Base + "/mcp"
	Line          Line
	Authenticator gateway.Authenticator
	RunTokens     gateway.RunTokens
	AccessTokens  AccessTokens // nil: no bearer is accepted
	Directory     gateway.Directory
	Stages        Stages
	Tools         Tools
	// Result is told what a call returned, before the client sees it; an error denies it to the client. May be nil.
	Result func(ctx context.Context, d *remit.Decision, result []byte) error
	// Answered returns when people have answered what is held, when nobody can any more, or when ctx ends. Nil: nobody is waited for.
	Answered func(ctx context.Context, id remit.HoldID)
	Quota    *gateway.Quota // per agent; nil: unbounded
	Timeout  time.Duration  // of one exchange with a server; default 5 min
	Park     time.Duration  // how long a suspended call waits for its client; default 2 min
	Idle     time.Duration  // after which a session or a connection to a server ends; default 30 min
	Log      *slog.Logger
	Now      func() time.Time
}

// Handler is the gateway. It is safe for concurrent use; its http.Server should have gateway.Connection as ConnContext, and ask
// for client certificates without requiring them.
type Handler struct {
	cfg      Config
	host     string // of Base
	resource string // Base + "/mcp"
	aead     cipher.AEAD
	recorder *gateway.Recorder

	ctx    context.Context // of all goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex    // guards the rest
	closed   bool          // nothing begins any more
	recheck  chan struct{} // closed when streams have to ask whether they may go on
	sessions map[string]*session
	conns    map[connKey]*conn
	flights  map[string]*flight
	waits    map[string]int // how many calls of an owner wait for people
}

// New checks cfg.
func New(cfg Config) (*Handler, error) {
	if cfg.Line == nil || cfg.Authenticator == nil || cfg.RunTokens == nil || cfg.Directory == nil || cfg.Stages == nil || cfg.Tools == nil {
		return nil, errors.New("mcp: a part is missing")
	}
	u, err := url.Parse(cfg.Base)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(cfg.Base, "/") {
		return nil, errors.New("mcp: Base must be an https URL without query, fragment and trailing slash")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Minute
	}
	if cfg.Park <= 0 {
		cfg.Park = 2 * time.Minute
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 30 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &Handler{cfg: cfg, host: u.Host, resource: cfg.Base + "/mcp", sessions: map[string]*session{}, conns: map[connKey]*conn{},
		flights: map[string]*flight{}, waits: map[string]int{}, recheck: make(chan struct{})}
	if h.aead, err = newAEAD(); err != nil {
		return nil, err
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.recorder = gateway.NewRecorder(h.ctx, cfg.Line.Executed, cfg.Log)
	return h, nil
}

// Close ends all sessions, connections and suspended calls and waits for them; what asks for one afterwards is refused.
func (h *Handler) Close() {
	h.cancel()
	h.mu.Lock()
	h.closed = true
	sessions, conns := h.sessions, h.conns
	h.sessions, h.conns = map[string]*session{}, map[connKey]*conn{}
	h.mu.Unlock()
	for _, s := range sessions {
		s.end()
	}
	for _, c := range conns {
		c.close()
	}
	h.wg.Wait()
	h.recorder.End()
}

// spawn runs f in a goroutine that Close awaits, unless the gateway is closed: under mu, since a WaitGroup must not be added to
// while it is waited for.
func (h *Handler) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.wg.Go(f)
	}
	return !h.closed
}

// closing answers who asks a gateway that is closed.
func closing() *rpcError {
	return &rpcError{code: jsonrpc.CodeInternalError, message: "the gateway is closing", status: http.StatusServiceUnavailable, ours: true}
}

// wellKnown stands between host and path of the resource (RFC 9728 section 3.1).
const wellKnown = "/.well-known/oauth-protected-resource"

// Register adds the gateway's addresses to mux.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.Handle("/mcp", h)
	mux.Handle("/mcp/{tool}", h)
	mux.Handle("GET "+wellKnown+"/mcp", h)
	mux.Handle("GET "+wellKnown+"/mcp/{tool}", h)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at, ok := strings.CutPrefix(r.URL.Path, wellKnown)
	tool := ""
	if rest := strings.TrimPrefix(at, "/mcp"); rest == at {
		http.NotFound(w, r)
		return
	} else if rest != "" {
		if tool, _ = strings.CutPrefix(rest, "/"); !toolName().MatchString(tool) {
			http.NotFound(w, r)
			return
		}
	}
	if ok {
		h.metadata(w, r, tool)
		return
	}
	//remit:guard S29 TestHostAndOrigin
	if !h.local(r) {
		http.Error(w, "Host or Origin is not this server's", http.StatusForbidden)
		return
	}
	switch r.Method {
	case http.MethodPost:
		h.post(w, r, tool)
	case http.MethodGet:
		h.get(w, r, tool)
	case http.MethodDelete:
		h.delete(w, r, tool)
	default:
		w.Header().Set("Allow", "GET, POST, DELETE")
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
	}
}
