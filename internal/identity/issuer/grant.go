// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/federation"
)

// GrantIssuer signs grant tokens: the only tokens that targets trust (S1). It has a key ring of its own, an iss of its own and
// serves its keys under it; no SVID verifies with them, and no grant token with those of SVIDs. It is safe for concurrent use.
type GrantIssuer struct {
	*Keys
	issuer string
}

// NewGrantIssuer opens the ring. issuer is the `iss` that targets are configured with: an https URL without query, fragment and
// trailing slash.
func NewGrantIssuer(issuer string, cfg KeysConfig) (*GrantIssuer, error) {
	if err := checkIssuer(issuer); err != nil {
		return nil, err
	}
	keys, err := OpenKeys(cfg)
	if err != nil {
		return nil, err
	}
	return &GrantIssuer{Keys: keys, issuer: issuer}, nil
}

// Issuer returns the `iss`.
func (g *GrantIssuer) Issuer() string { return g.issuer }

// Sign works as Keys.Sign and refuses claims of another issuer.
func (g *GrantIssuer) Sign(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	//remit:guard S1 TestGrantIssuerAndKeys
	if err := json.Unmarshal(payload, &c); err != nil || c.Issuer != g.issuer {
		return "", fmt.Errorf("sign grant token: iss is %q, not %q", c.Issuer, g.issuer)
	}
	return g.Keys.Sign(json.RawMessage(payload))
}

// Discovery serves the issuer's metadata and keys.
func (g *GrantIssuer) Discovery() http.Handler { return discovery(g.issuer, g.Keys) }

// Discovery serves the metadata and keys of JWT-SVIDs below Config.Issuer, so that clouds and Vault can verify them. It is an
// error if there is no Issuer.
func (a *Authority) Discovery() (http.Handler, error) {
	if err := checkIssuer(a.cfg.Issuer); err != nil {
		return nil, err
	}
	return discovery(a.cfg.Issuer, a.jwt), nil
}

// BundleHandler serves the trust domain's bundle (SPIFFE Federation, section 5) at any path, without authentication.
func (a *Authority) BundleHandler() (http.Handler, error) {
	return federation.NewHandler(a.cfg.TrustDomain, a)
}

func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	//remit:guard S7 TestGrantIssuerAndKeys
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.HasSuffix(issuer, "/") {
		return fmt.Errorf("issuer %q is not an https URL without query, fragment, user and trailing slash", issuer)
	}
	return nil
}

// The two documents of OpenID Connect Discovery 1.0, section 4, below the issuer's path.
const (
	configurationPath = "/.well-known/openid-configuration"
	keysPath          = "/keys"
)

func discovery(issuer string, keys *Keys) http.Handler {
	base := ""
	if u, err := url.Parse(issuer); err == nil { // checked before
		base = u.Path
	}
	document, _ := json.Marshal(map[string]any{ // strings encode always
		"issuer":                                issuer,
		"jwks_uri":                              issuer + keysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	})
	// Caches must not keep keys for longer than a new one is published before it signs.
	age := fmt.Sprintf("max-age=%d", int(keys.cfg.Notice/2/time.Second))
	serve := func(contentType string, body func() []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Cache-Control", age)
			_, _ = w.Write(body())
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+configurationPath, serve("application/json", func() []byte { return document }))
	mux.HandleFunc("GET "+base+keysPath, serve("application/jwk-set+json", keys.JWKS))
	return mux
}
