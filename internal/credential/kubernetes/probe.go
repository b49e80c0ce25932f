// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"

	"remit"
)

// What a probe asks for: every authenticated user may read the first, and nobody finds anything at the second. Both are
// discovery, which the audit webhook passes over.
const (
	ProbeAllowed = "/version"
	ProbeDenied  = "/apis/remit-probe"
)

// probeLife is a probe's token's, in whole seconds.
const probeLife = 10 * time.Second

// Probed is what the API server answered to a probe: the HTTP status of each request.
type Probed struct {
	Allowed, Denied [2]int
}

// Probe shows the API server a grant token that no lease stands behind, and asks twice for each of two harmless paths. So
// `remit doctor` learns whether grant tokens are trusted and, from what the webhook was asked meanwhile, whether the API server
// remembers answers. subject is a SPIFFE ID that no agent has; id becomes the token's jti. The token's holder has no right but
// those of every authenticated user, and it ends after ten seconds.
func (d *Driver) Probe(ctx context.Context, subject, id string) (p Probed, err error) {
	if d.cfg.Mode == ModeServiceAccount {
		return p, invalid("", "mode %s has no grant tokens to try", d.cfg.Mode)
	}
	now := d.cfg.Now()
	token, err := d.cfg.Signer.Sign(Claims{Issuer: d.cfg.Issuer, Audience: []string{d.cfg.Audience}, Subject: subject, ID: id,
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: now.Add(probeLife).Unix(),
		Remit: RemitClaims{Lease: id, Name: id, Grant: id, Groups: []string{GroupAgents}}})
	if err != nil {
		return p, &remit.Error{Code: remit.CodeUnavailable, Msg: "kubernetes: the grant issuer did not sign", Cause: err}
	}
	client, err := rest.HTTPClientFor(d.anonymous)
	if err != nil {
		return p, err
	}
	for path, into := range map[string]*[2]int{ProbeAllowed: &p.Allowed, ProbeDenied: &p.Denied} {
		for i := range into {
			if into[i], err = status(ctx, client, d.anonymous.Host+path, remit.NewSecret(token)); err != nil {
				return p, fmt.Errorf("probe the API server: %w", err)
			}
		}
	}
	return p, nil
}

// Accepts reports whether the API server takes the token for anybody. The request is for what every authenticated user may read.
func (d *Driver) Accepts(ctx context.Context, token remit.Secret) (bool, error) {
	client, err := rest.HTTPClientFor(d.anonymous)
	if err != nil {
		return false, err
	}
	got, err := status(ctx, client, d.anonymous.Host+ProbeAllowed, token)
	if err != nil {
		return false, fmt.Errorf("show the API server a token: %w", err)
	}
	return got != http.StatusUnauthorized, nil
}

func status(ctx context.Context, client *http.Client, url string, token remit.Secret) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, res.Body.Close()
}
