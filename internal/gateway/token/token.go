// SPDX-License-Identifier: Apache-2.0

// Package token is the OAuth 2.0 token endpoint: an agent proves who it is with its SVID, says with authorization_details
// what it needs now, inside which run, and gets a credential for exactly that, for minutes.
//
//	POST /oauth2/token                                   client credentials (RFC 6749 section 4.4)
//	POST /oauth2/revoke                                  revocation (RFC 7009)
//	GET  /.well-known/oauth-authorization-server         metadata (RFC 8414)
//
// Client authentication is draft-ietf-oauth-spiffe-client-auth: mutual TLS with an X.509-SVID, where client_id is the
// certificate's URI SAN; or client_assertion, a JWT-SVID whose only audience is the issuer and which counts once (S5). Where
// both are there, both must be valid and of one identity. Nothing is read from the Authorization header.
//
// The run is that of the run token in the Txn-Token header (draft-ietf-oauth-transaction-tokens). authorization_details
// (RFC 9396) is an array of exactly one object:
//
//	type        the action, such as kubernetes.apply; "" only with permission, and then the line looks it up
//	target      the target's name; or locations, one URI of it; missing only with permission, likewise
//	actions     optional; only the action's last part, such as ["apply"]
//	permission  optional: the permission's name, which narrows; arguments that only it fixes may then be left out
//	run, stage  optional: must equal what the run token stands for
//	under       optional: the decision of the call inside which this is asked
//	ttl         optional: seconds, or a duration such as "5m"; never longer than the permission's
//	…           every other member is an argument; policy denies arguments that the permission does not name
//
// Without authorization_details, and with resource naming an enforcement point of ours (the MCP gateway), the answer is an access
// token (token_type Bearer) for that one alone, of this agent and this run, for at most five minutes.
//
// A success states what was granted, not what was asked. Everything that a verified agent asks in correct form is decided and
// recorded by the line, whatever the answer; what is not authenticated writes nothing (S35).
//
// The package keeps nothing and starts no goroutine. The only secret that it touches is the credential, on its way out.
package token

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"remit"
	"remit/internal/gateway"
)

// Grants finds and ends grants; the broker and the store implement it. It is safe for concurrent use.
type Grants interface {
	Grant(id remit.GrantID) (remit.Grant, bool)
	// GrantOf returns the grant under which the credential was minted, by its id as the target's audit log writes it: for a
	// JWT, "JTI=" and the jti claim.
	GrantOf(credential string) (remit.GrantID, bool)
	// Revoke ends the grant at its target, then on record (S20). Ending what has ended succeeds.
	Revoke(ctx context.Context, id remit.GrantID, why, by string) error
}

// Access issues access tokens for an enforcement point of our own, to clients that can send nothing else. It is safe for
// concurrent use.
type Access interface {
	// Audience returns the audience of a resource URI that such tokens are for.
	Audience(resource string) (string, bool)
	// Access returns a token of the client inside the run, and its end; what it hands out or refuses is on record before.
	Access(ctx context.Context, client remit.Principal, agent remit.Name, run remit.RunID, audience string, at time.Time) (remit.Secret, time.Time, error)
}

// Config is what a Handler needs; Issuer, Line, Authenticator, RunTokens, Directory and Grants are required.
type Config struct {
	Issuer        string // https URL without query, fragment and trailing slash: aud of assertions, byte by byte
	Line          gateway.Line
	Authenticator gateway.Authenticator
	RunTokens     gateway.RunTokens
	Directory     gateway.Directory
	Grants        Grants
	Location      func(uri string) (string, bool) // target of a resource URI; urn:remit:target:NAME always works; may be nil
	Actions       func() []string                 // for the metadata; may be nil
	Access        Access                          // nil: no access tokens are issued
	Quota         *gateway.Quota                  // per agent; nil: unbounded. Revocation is never refused for it
	Timeout       time.Duration                   // of one request; default 20 s
	Log           *slog.Logger                    // faults, for operators; default slog.Default()
	Now           func() time.Time                // default time.Now
}

// Handler serves the three addresses below the issuer's path. It is safe for concurrent use. Its http.Server should have
// gateway.Connection as ConnContext, and ask for client certificates without requiring them.
type Handler struct {
	cfg  Config
	path string // of the issuer
}

// New checks cfg.
func New(cfg Config) (*Handler, error) {
	if cfg.Line == nil || cfg.Authenticator == nil || cfg.RunTokens == nil || cfg.Directory == nil || cfg.Grants == nil {
		return nil, errors.New("token: a part is missing")
	}
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(cfg.Issuer, "/") {
		return nil, errors.New("token: Issuer must be an https URL without query, fragment and trailing slash")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Handler{cfg: cfg, path: u.Path}, nil
}

// wellKnown stands between host and path of the issuer (RFC 8414 section 3).
const wellKnown = "/.well-known/oauth-authorization-server"

// ServeHTTP implements http.Handler; see the package comment.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case h.path + "/oauth2/token":
		h.post(w, r, h.token)
	case h.path + "/oauth2/revoke":
		h.post(w, r, h.revoke)
	case wellKnown + h.path:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			write(w, http.StatusMethodNotAllowed, nil)
			return
		}
		write(w, http.StatusOK, h.metadata())
	default:
		write(w, http.StatusNotFound, nil)
	}
}

// call is one authenticated request in flight.
type call struct {
	at     time.Time
	client remit.Principal
	agent  remit.Name // "" for a workload that no file names
	form   form
	txn    string // run token; "" for none
}

// post reads and authenticates a form and writes what do answers.
func (h *Handler) post(w http.ResponseWriter, r *http.Request, do func(context.Context, *call) ([]byte, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), h.cfg.Timeout)
	defer cancel()
	c := call{at: h.cfg.Now()}
	err := h.read(ctx, r, &c)
	var body []byte
	if err == nil {
		body, err = do(ctx, &c)
	}
	if err != nil {
		h.fail(w, &c, err)
		return
	}
	write(w, http.StatusOK, body)
}

func (h *Handler) read(ctx context.Context, r *http.Request, c *call) (err error) {
	if r.Method != http.MethodPost {
		return &problem{status: http.StatusMethodNotAllowed, code: invalidRequest, text: "the method must be POST"}
	}
	//remit:guard S35 TestBadForms
	if r.URL.RawQuery != "" {
		return bad("parameters belong into the body: what stands in a URL ends up in logs")
	}
	//remit:guard S10 TestBadForms
	if len(r.Header["Authorization"]) > 0 {
		return bad("the Authorization header is not used here: authenticate with an SVID, and send a run token in Txn-Token")
	}
	if c.form, err = readForm(r); err != nil {
		return err
	}
	if c.txn, err = txnToken(r.Header["Txn-Token"]); err != nil {
		return err
	}
	//remit:guard S5 TestClientAuthentication
	if c.client, err = h.authenticate(ctx, r, c); err != nil {
		return err
	}
	c.agent, _ = h.cfg.Directory.Agent(c.client.ID)
	return nil
}

// token dispatches by grant type.
func (h *Handler) token(ctx context.Context, c *call) ([]byte, error) {
	key := string(c.agent)
	if key == "" {
		key = "unknown in " + c.client.ID.TrustDomain().Name()
	}
	account, ok := h.cfg.Quota.Enter(key, c.form.size, c.at)
	//remit:guard S35 TestQuota
	if !ok {
		h.cfg.Quota.Brake(ctx)
		return nil, &problem{status: http.StatusBadRequest, code: slowDown, text: "more requests than this agent's quota", retry: true}
	}
	defer account.Leave()
	switch c.form.get("grant_type") {
	case "":
		return nil, bad("grant_type is missing")
	case "client_credentials":
		return h.clientCredentials(ctx, c)
	}
	return nil, &problem{code: "unsupported_grant_type", text: "the grant type is not one of the metadata's grant_types_supported"}
}

// metadata is RFC 8414 section 2. There is no authorization endpoint, so no response type.
func (h *Handler) metadata() []byte {
	b := remit.AppendJSONString([]byte(`{"issuer":`), h.cfg.Issuer)
	b = remit.AppendJSONString(append(b, `,"token_endpoint":`...), h.cfg.Issuer+"/oauth2/token")
	b = remit.AppendJSONString(append(b, `,"revocation_endpoint":`...), h.cfg.Issuer+"/oauth2/revoke")
	grants := []string{"client_credentials"}
	methods := []string{"spiffe_x509", "spiffe_jwt"}
	b = gateway.AppendTexts(append(b, `,"grant_types_supported":`...), grants)
	b = gateway.AppendTexts(append(b, `,"token_endpoint_auth_methods_supported":`...), methods)
	b = gateway.AppendTexts(append(b, `,"revocation_endpoint_auth_methods_supported":`...), methods)
	if h.cfg.Actions != nil {
		b = gateway.AppendTexts(append(b, `,"authorization_details_types_supported":`...), h.cfg.Actions())
	}
	return append(b, `,"response_types_supported":[]}`...)
}
