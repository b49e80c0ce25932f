// SPDX-License-Identifier: Apache-2.0

// Package login lets people manage Remit over HTTPS after a login at the company's OpenID provider (S2).
//
//	POST /login/start     asks to log in: by a browser on the person's machine (authorization code with PKCE and a loopback
//	                      redirect, RFC 8252), or by a code typed elsewhere (device flow, RFC 8628)
//	POST /login/finish    the code that came back; or, in the device flow, asks whether the person has answered
//
// The server is the relying party: it alone talks to the provider, so no ID token is ever in the hands of a client, and none that
// was stolen elsewhere can be shown here. What the client gets is a session: a random token that counts only over TLS connections
// made with the client certificate with which the login began (RFC 8705 section 2.2), for an hour by default, until it is ended or
// the claims map to no role. An SVID, a run token, a grant or an enforcement point's certificate is no session, and a session is no
// workload: so no agent can hold a role.
//
//	POST /login/job       a CI job logs in by the token that its CI system gave it
//
// A person's name is a claim; who logged in with it first keeps it. Claims map to roles by the server's file, at every call.
//
// The package starts no goroutine. Unauthenticated calls write nothing; how many logins wait is bounded, per address and in all.
package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"remit"
)

// Store keeps sessions and whose name is whose; store.Store implements it. Safe for concurrent use.
type Store interface {
	Session(remit.SessionID) (remit.Session, bool)
	Person(remit.Name) (remit.PersonRecord, uint64)
	Commit(context.Context, remit.Change) (remit.Receipt, error)
}

// Rule gives roles to whoever has the value in the claim.
type Rule struct {
	Claim, Has string
	Roles      []string
}

// Config of a Handler; without a stated default everything is required.
type Config struct {
	Issuer   string // of the provider, byte for byte
	ClientID string
	Secret   remit.Secret // of the client; zero for a public one
	Scopes   []string     // beside openid
	Name     string       // the claim that is the person's name
	Groups   string       // the claim that holds the person's groups
	Rules    []Rule
	Life     time.Duration // of a session
	HTTP     *http.Client  // to the provider
	Store    Store
	// Local returns the provider's subject of a local operator; ok says whether there is one with that name. A login gets the name
	// of a local operator only with that subject.
	Local func(remit.Name) (subject string, ok bool)
	Jobs  []Job // which CI jobs log in; with some, a provider for people may be left out
	Log   *slog.Logger
	Now   func() time.Time // default time.Now
}

// Bounds on logins that wait for their person.
const (
	maxWaiting        = 1024
	maxWaitingAddress = 16
	waitFor           = 10 * time.Minute
	skew              = 30 * time.Second // between the provider's clock and ours
)

// Handler serves logins and knows sessions. It is safe for concurrent use.
type Handler struct {
	cfg Config

	mu       sync.Mutex // guards the rest
	provider *oidc.Provider
	waiting  map[string]*waiting
	ended    map[remit.SessionID]time.Time // ended here, until they would have expired: an end waits for no disk (S20)
}

// waiting is a login that has begun. Its fields never change, but for busy.
type waiting struct {
	thumbprint, address string
	state, nonce        string
	verifier            string
	redirect            string
	device              *oauth2.DeviceAuthResponse // nil: by browser
	begun, until        time.Time
	busy                bool // guarded by Handler.mu
}

// New checks cfg. The provider is asked for the first time when somebody logs in: its absence keeps nothing else from starting.
func New(cfg Config) (*Handler, error) {
	people := cfg.ClientID != "" && cfg.Name != "" && len(cfg.Rules) > 0 && cfg.Life > 0 && cfg.HTTP != nil
	if cfg.Issuer != "" && !people || cfg.Issuer == "" && len(cfg.Jobs) == 0 || cfg.Store == nil || cfg.Local == nil || cfg.Log == nil {
		return nil, errors.New("login: a part is missing")
	}
	if err := checkJobs(cfg.Jobs); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Handler{cfg: cfg, waiting: map[string]*waiting{}, ended: map[remit.SessionID]time.Time{}}, nil
}

// Start is what a client asks.
type Start struct {
	Flow     string `json:"flow"`               // "browser" or "device"
	Redirect string `json:"redirect,omitempty"` // browser: http://127.0.0.1:PORT/PATH, where the client listens
}

// Started is what the person is to do.
type Started struct {
	Login    string `json:"login"`
	URL      string `json:"url"`
	State    string `json:"state,omitempty"`     // browser: what must come back
	UserCode string `json:"user_code,omitempty"` // device: what is to be typed there
	Seconds  int    `json:"seconds"`             // so long it waits
}

// Finish is what came back.
type Finish struct {
	Login string `json:"login"`
	Code  string `json:"code,omitempty"`
	State string `json:"state,omitempty"`
}

// Granted is a session. The token is shown once.
type Granted struct {
	Session remit.SessionID `json:"session"`
	Token   string          `json:"token"`
	Person  remit.Name      `json:"person"`
	Roles   []string        `json:"roles"`
	Expires time.Time       `json:"expires"`
}

func invalid(msg, hint string) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: msg, Hint: hint}
}

// oauth returns the client's configuration, and the provider, which is discovered once it answers.
func (h *Handler) oauth(ctx context.Context, redirect string) (*oauth2.Config, *oidc.Provider, error) {
	h.mu.Lock()
	p := h.provider
	h.mu.Unlock()
	if p == nil {
		asking, cancel := context.WithTimeout(ctx, 10*time.Second) // of it, the provider keeps the HTTP client alone
		defer cancel()
		var err error
		if p, err = oidc.NewProvider(oidc.ClientContext(asking, h.cfg.HTTP), h.cfg.Issuer); err != nil {
			h.cfg.Log.Warn("login: the provider cannot be discovered", "issuer", h.cfg.Issuer, "err", err)
			return nil, nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "the identity provider " + h.cfg.Issuer + " does not answer as one", Cause: err,
				Hint: "the server's log says why; the admin socket works without it"}
		}
		h.mu.Lock()
		h.provider = p
		h.mu.Unlock()
	}
	c := &oauth2.Config{ClientID: h.cfg.ClientID, Endpoint: p.Endpoint(), RedirectURL: redirect,
		Scopes: append([]string{oidc.ScopeOpenID}, h.cfg.Scopes...)}
	if !h.cfg.Secret.IsZero() {
		c.ClientSecret = h.cfg.Secret.Reveal()
	}
	return c, p, nil
}

// start begins a login for whoever holds the certificate's key.
func (h *Handler) start(ctx context.Context, in Start, thumbprint, address string) (Started, error) {
	if h.cfg.Issuer == "" {
		return Started{}, invalid("people do not log in here", "remit.yaml: people says where they do")
	}
	now := h.cfg.Now()
	w := &waiting{thumbprint: thumbprint, address: address, redirect: in.Redirect, begun: now, until: now.Add(waitFor),
		state: rand.Text(), nonce: rand.Text(), verifier: oauth2.GenerateVerifier()}
	h.mu.Lock()
	_, err := h.room(address, now) // before the provider is asked anything for it
	h.mu.Unlock()
	if err != nil {
		return Started{}, err
	}
	out := Started{Login: rand.Text(), Seconds: int(waitFor.Seconds())}
	switch in.Flow {
	case "browser":
		if err := loopback(in.Redirect); err != nil {
			return Started{}, err
		}
		c, _, err := h.oauth(ctx, in.Redirect)
		if err != nil {
			return Started{}, err
		}
		out.State = w.state
		out.URL = c.AuthCodeURL(w.state, oauth2.S256ChallengeOption(w.verifier), oidc.Nonce(w.nonce),
			oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0")) // not whom the browser remembers
	case "device":
		c, _, err := h.oauth(ctx, "")
		if err != nil {
			return Started{}, err
		}
		if c.Endpoint.DeviceAuthURL == "" {
			return Started{}, invalid("the identity provider has no device flow", "log in without --device, on a machine with a browser")
		}
		if w.device, err = c.DeviceAuth(oidc.ClientContext(ctx, h.cfg.HTTP)); err != nil {
			return Started{}, h.provided("begin the device flow", err)
		}
		out.URL, out.UserCode = w.device.VerificationURI, w.device.UserCode
	default:
		return Started{}, invalid("flow is browser or device", "")
	}
	return out, h.keep(out.Login, w, now)
}

// loopback accepts where a client on the person's own machine listens, and nothing else: a code is never sent elsewhere.
func loopback(redirect string) error {
	u, err := url.Parse(redirect)
	//remit:guard S2 TestRedirectIsLoopback
	if err != nil || u.Scheme != "http" || u.Port() == "" || u.User != nil || u.Fragment != "" || !slices.Contains([]string{"127.0.0.1", "::1"}, u.Hostname()) {
		return invalid("redirect must be http://127.0.0.1:PORT/PATH", "")
	}
	return nil
}

// keep lets a login wait; others may have come since there was room for it.
func (h *Handler) keep(id string, w *waiting, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	instead, err := h.room(w.address, now)
	if err != nil {
		return err
	}
	delete(h.waiting, instead)
	h.waiting[id] = w
	return nil
}

// take returns a login that waits, for the holder of the key with which it began. Nobody else can use it at the same time; a
// browser's code counts once, so its login is gone.
func (h *Handler) take(in Finish, thumbprint string) (*waiting, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.waiting[in.Login]
	gone := &remit.Error{Code: remit.CodeNotFound, Msg: "there is no such login that waits", Hint: "start again: remit login"}
	if w == nil || !h.cfg.Now().Before(w.until) {
		return nil, gone
	}
	//remit:guard S2 TestLoginIsBoundToItsKey
	if subtle.ConstantTimeCompare([]byte(w.thumbprint), []byte(thumbprint)) != 1 {
		return nil, gone
	}
	if w.busy {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: "this login is being asked about already"}
	}
	if w.device != nil {
		w.busy = true
		return w, nil
	}
	delete(h.waiting, in.Login)
	//remit:guard S2 TestStateMustComeBack
	if subtle.ConstantTimeCompare([]byte(w.state), []byte(in.State)) != 1 {
		return nil, invalid("the state is not that of this login", "start again: remit login")
	}
	return w, nil
}

// release lets a device login be asked about again, or forgets it.
func (h *Handler) release(id string, w *waiting, forget bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.busy = false
	if forget {
		delete(h.waiting, id)
	}
}

// provided turns an error of the provider into what a client may know.
func (h *Handler) provided(what string, err error) error {
	h.cfg.Log.Warn("login: the provider refused", "what", what, "err", err)
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok && e.ErrorCode != "" {
		return &remit.Error{Code: remit.CodeForbidden, Msg: "the identity provider refused to " + what + ": " + e.ErrorCode, Cause: err}
	}
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "the identity provider cannot be asked to " + what, Cause: err, Hint: "the server's log says more"}
}
