// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"remit"
	"remit/internal/gateway"
)

// caller is who sent a request, and inside which run.
type caller struct {
	at      time.Time
	who     remit.Principal
	agent   remit.Name // "" for a workload that no file names
	run     remit.RunID
	refused []remit.Reason // what is wrong with the run token; the line records it
	tokenOf remit.RunID    // the run of a good token in the wrong hands: for the record, never to enter
	account *gateway.Account
}

// owner is what sessions, suspended calls and sealed states are bound to: not the certificate, which is renewed every few
// minutes, but the verified identity, its launch and its run.
func (c *caller) owner() string {
	return c.who.ID.String() + "\n" + string(c.who.Launch) + "\n" + string(c.run)
}

func (c *caller) owns(owner string) bool {
	return subtle.ConstantTimeCompare([]byte(owner), []byte(c.owner())) == 1
}

// caller verifies the caller. An error is written as 401.
func (h *Handler) caller(r *http.Request) (caller, error) {
	c := caller{at: h.cfg.Now()}
	bearers := r.Header["Authorization"]
	switch txns := r.Header["Txn-Token"]; {
	//remit:guard S10 TestCallers
	case len(bearers) > 1 || len(txns) > 1 || len(bearers) == 1 && len(txns) == 1:
		return c, unauthenticated("one Authorization or one Txn-Token, not more")
	case len(bearers) == 1:
		return h.bearer(r, c, bearers[0])
	}
	var err error
	if c.who, err = gateway.Caller(r, h.cfg.Authenticator, c.at); err != nil {
		return c, err
	}
	c.agent, _ = h.cfg.Directory.Agent(c.who.ID)
	if txn := r.Header.Get("Txn-Token"); txn != "" {
		run, err := h.cfg.RunTokens.RunToken(txn, c.who, c.at)
		//remit:guard S10 TestCallers
		if err != nil {
			reason, of := gateway.RefusedToken(err)
			c.refused, c.tokenOf = []remit.Reason{reason}, of
			return c, nil
		}
		c.run = run
	}
	return c, nil
}

// bearer takes an access token made for this gateway. A certificate beside it must be of the same identity.
func (h *Handler) bearer(r *http.Request, c caller, header string) (caller, error) {
	kind, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(kind, "Bearer") || h.cfg.AccessTokens == nil || len(token) > 8<<10 {
		return c, unauthenticated("the Authorization header holds no access token of this gateway")
	}
	var err error
	if c.who, c.run, err = h.cfg.AccessTokens.AccessToken(strings.TrimSpace(token), h.resource, c.at); err != nil {
		return c, err
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		p, err := gateway.Caller(r, h.cfg.Authenticator, c.at)
		//remit:guard S10 TestCallers
		if err != nil || p.ID != c.who.ID {
			return c, unauthenticated("the access token is another identity's than the certificate")
		}
	}
	c.agent, _ = h.cfg.Directory.Agent(c.who.ID)
	return c, nil
}

func unauthenticated(msg string) error {
	return &remit.Error{Code: remit.CodeUnauthenticated, Msg: msg}
}

// challenge answers 401 as RFC 9728 section 5.1 and RFC 6750 section 3 have it: also for a token that is over, so that clients get
// another. Which check failed is not said.
func (h *Handler) challenge(w http.ResponseWriter, r *http.Request, tool string, err error) {
	if remit.CodeOf(err) == remit.CodeUnavailable {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the caller cannot be verified now", http.StatusServiceUnavailable)
		return
	}
	c := `Bearer resource_metadata="` + h.cfg.Base + wellKnown + resourcePath(tool) + `"`
	if len(r.Header["Authorization"]) > 0 {
		c += `, error="invalid_token", error_description="get another access token for this run"`
	}
	w.Header().Set("WWW-Authenticate", c)
	http.Error(w, "show an X.509-SVID, or an access token of this gateway", http.StatusUnauthorized)
}

func resourcePath(tool string) string {
	if tool == "" {
		return "/mcp"
	}
	return "/mcp/" + tool
}

// metadata is that of RFC 9728 section 2. All addresses share one audience.
func (h *Handler) metadata(w http.ResponseWriter, r *http.Request, tool string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "use GET", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"resource": h.cfg.Base + resourcePath(tool), "authorization_servers": []string{h.cfg.Base},
		"bearer_methods_supported": []string{"header"}, "resource_name": "Remit MCP gateway",
		"tls_client_certificate_bound_access_tokens": false,
	})
}

// local refuses what a page in a browser was made to send: a foreign Origin, or a Host that is a foreign name (DNS rebinding).
// The host of Base, loopback names and literal loopback addresses cannot be rebound.
func (h *Handler) local(r *http.Request) bool {
	if r.Host != h.host && !loopback(r.Host) {
		return false
	}
	origins := r.Header["Origin"]
	if len(origins) == 0 {
		return true
	}
	u, err := url.Parse(origins[0])
	return len(origins) == 1 && err == nil && u.Host != "" && (u.Scheme == "https" && u.Host == h.host || loopback(u.Host))
}

func loopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
