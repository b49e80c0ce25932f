// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
)

// What remit exec puts into the child's environment beside SPIFFE_ENDPOINT_SOCKET; an agent's own set-up may do the same.
const (
	envURL      = "REMIT_URL"            // the server's HTTPS address
	envRunToken = "REMIT_RUN_TOKEN_FILE" //nolint:gosec // the name of a file
)

// ask is one request to the token endpoint.
type ask struct {
	action, target, permission string
	args                       map[string]json.RawMessage
	ttl                        time.Duration
	url, tokenFile             string
	receipts                   string // file that keeps the receipts of answers; empty: none
	resource                   string // an enforcement point of the server: an access token for it is asked for, and nothing else
}

// answer is the token endpoint's success (RFC 6749 section 5.1, RFC 9396 section 7), as far as commands need it.
type answer struct {
	AccessToken string            `json:"access_token"`
	ExpiresIn   int64             `json:"expires_in"`
	Type        string            `json:"issued_token_type"`
	Grant       remit.GrantID     `json:"grant_id"`
	Decision    remit.DecisionID  `json:"decision_id"`
	Credential  map[string]string `json:"credential"`
	raw         []byte
	server      spiffeid.ID // who answered
	bundle      []byte      // what it was known by: PEM
}

// refusal is the token endpoint's error (RFC 6749 section 5.2).
type refusal struct {
	Error       string         `json:"error"`
	Description string         `json:"error_description"`
	Decision    string         `json:"decision_id"`
	Reasons     []remit.Reason `json:"reasons"`
}

// request asks the token endpoint with the X.509-SVID of this process and the run token that it holds.
func (q *ask) request(ctx context.Context) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	token, err := q.runToken()
	if err != nil {
		return nil, err
	}
	client, who, err := svidClient(ctx)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	form, err := q.form(who.self)
	if err != nil {
		return nil, err
	}
	base := q.url
	if base == "" {
		base = os.Getenv(envURL)
	}
	if base == "" {
		return nil, badUse("the server's address is not known").hint("set %s, or run this under remit exec", envURL)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(base, "/")+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, badUse("%v", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Txn-Token", token)
	res, err := client.Do(req)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "the token endpoint does not answer", Cause: err,
			Hint: "remit doctor, as operator, says whether the server is well"}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the token endpoint's answer: %w", err)
	}
	if err := q.keepReceipt(res.StatusCode, body); err != nil {
		return nil, err
	}
	got, err := readAnswer(res.StatusCode, body)
	if err == nil {
		got.server, got.bundle = who.server, who.bundle
	}
	return got, err
}

// keepReceipt appends the answer's receipt to the file, in the form that remit ledger audit reads: with what was answered, so
// that a server cannot hand out the receipt of another answer.
func (q *ask) keepReceipt(status int, body []byte) error {
	if q.receipts == "" {
		return nil
	}
	var a struct {
		Error    string           `json:"error"`
		Decision remit.DecisionID `json:"decision_id"`
		Receipt  json.RawMessage  `json:"receipt"`
	}
	if err := json.Unmarshal(body, &a); err != nil || len(a.Receipt) == 0 {
		return nil //nolint:nilerr // the answer is no decision, and readAnswer says what it is
	}
	effect := map[remit.Code]remit.Effect{remit.CodeDenied: remit.Deny, remit.CodeHeld: remit.Hold}[codeOf(a.Error)]
	if status == http.StatusOK {
		effect = remit.Allow
	}
	line, err := json.Marshal(map[string]any{"decision_id": a.Decision, "effect": effect.String(), "receipt": a.Receipt})
	if err != nil {
		return fmt.Errorf("keep the receipt: %w", err)
	}
	f, err := os.OpenFile(q.receipts, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return badUse("--receipts: %v", err).hint("name a file that this user may write")
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// denied is a refusal of the token endpoint, which is an answer: body is for who asked for JSON.
type denied struct {
	why  *remit.Error
	body []byte
}

func (d *denied) Error() string { return d.why.Error() }
func (d *denied) Unwrap() error { return d.why }

func (q *ask) runToken() (string, error) {
	file := q.tokenFile
	if file == "" {
		file = os.Getenv(envRunToken)
	}
	if file == "" {
		return "", badUse("no run token").hint("set %s to a file that holds one, or run this under remit exec", envRunToken)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", badUse("the run token: %v", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// ends are the two sides of a connection, and the PEM of what the server is known by.
type ends struct {
	self, server spiffeid.ID
	bundle       []byte
}

// svidClient makes an HTTP client that shows the process's SVID and accepts only the server of the same trust domain.
func svidClient(ctx context.Context) (*http.Client, ends, error) {
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithLogger(quietLog{}))
	if err != nil {
		return nil, ends{}, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no identity from the Workload API", Cause: err,
			Hint: noIdentity()}
	}
	svid := x.DefaultSVID()
	server, err := spiffeid.FromPath(svid.ID.TrustDomain(), "/remit/server")
	if err != nil {
		return nil, ends{}, fmt.Errorf("name the server: %w", err)
	}
	bundle, err := x.Bundles.GetX509BundleForTrustDomain(server.TrustDomain())
	if err != nil {
		return nil, ends{}, fmt.Errorf("read the trust bundle: %w", err)
	}
	known, err := bundle.Marshal()
	if err != nil {
		return nil, ends{}, fmt.Errorf("read the trust bundle: %w", err)
	}
	cfg := tlsconfig.MTLSClientConfig(svid, x.Bundles, tlsconfig.AuthorizeID(server))
	cfg.MinVersion = tls.VersionTLS13
	return &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}, ends{svid.ID, server, known}, nil
}

// noIdentity is the next step of a process that got no SVID: under remit exec it is a descendant of what was launched.
func noIdentity() string {
	if os.Getenv(envRunToken) != "" {
		return "only the launched process itself has the identity: write inherit: true under launch in the agent's file, and list this program's digest in commands"
	}
	return "set SPIFFE_ENDPOINT_SOCKET; the agent's file must attest this process"
}

// quietLog keeps the SPIFFE client's retries off the terminal; the last error is reported.
type quietLog struct{}

func (quietLog) Debugf(string, ...any) {}
func (quietLog) Infof(string, ...any)  {}
func (quietLog) Warnf(string, ...any)  {}
func (quietLog) Errorf(string, ...any) {}

func (q *ask) form(id spiffeid.ID) (url.Values, error) {
	if q.resource != "" {
		return url.Values{"grant_type": {"client_credentials"}, "client_id": {id.String()}, "resource": {q.resource}}, nil
	}
	detail := map[string]any{"type": q.action}
	for k, v := range q.args {
		detail[k] = v
	}
	for k, v := range map[string]string{"target": q.target, "permission": q.permission} {
		if v != "" {
			detail[k] = v
		}
	}
	if q.ttl > 0 {
		detail["ttl"] = q.ttl.String()
	}
	b, err := json.Marshal([]any{detail})
	if err != nil {
		return nil, badUse("arguments: %v", err)
	}
	return url.Values{"grant_type": {"client_credentials"}, "client_id": {id.String()}, "authorization_details": {string(b)}}, nil
}

func readAnswer(status int, body []byte) (*answer, error) {
	if status == http.StatusOK {
		var a answer
		if err := json.Unmarshal(body, &a); err != nil || a.AccessToken == "" {
			return nil, errors.Join(errors.New("the token endpoint's answer is not understood"), err)
		}
		a.raw = bytes.TrimSpace(body)
		return &a, nil
	}
	var r refusal
	if err := json.Unmarshal(body, &r); err != nil || r.Error == "" {
		return nil, fmt.Errorf("the token endpoint answered %d", status)
	}
	e := &remit.Error{Code: codeOf(r.Error), Msg: r.Error, ID: r.Decision}
	if r.Description != "" {
		e.Msg += ": " + clean(r.Description)
	}
	for _, why := range r.Reasons {
		e.Msg += fmt.Sprintf("; %s %s", why.Code, clean(why.Of))
	}
	if r.Decision != "" {
		e.Hint = "an operator sees all of it with: remit why " + clean(r.Decision)
	}
	return nil, &denied{why: e, body: bytes.TrimSpace(body)}
}

func codeOf(oauth string) remit.Code {
	switch oauth {
	case "access_denied":
		return remit.CodeDenied
	case "authorization_pending", "slow_down":
		return remit.CodeHeld
	case "invalid_client", "unauthorized_client":
		return remit.CodeUnauthenticated
	case "temporarily_unavailable", "server_error":
		return remit.CodeUnavailable
	}
	return remit.CodeInvalid
}
