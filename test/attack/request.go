// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit"
	"remit/internal/api"
)

// become ROLE [AS]: takes over an identity of the profile: fetches its X.509-SVID as its user.
func (a *attack) become(_ *testscript.TestScript, args []string) error {
	id, ok := a.profile.Identities[args[0]]
	if !ok {
		return fmt.Errorf("the profile has no identity %q", args[0])
	}
	out, err := asUser(context.Background(), id.UID, nil, "x509", a.profile.Workload, id.Name)
	if err != nil {
		return err
	}
	var f fetched
	if err := json.Unmarshal(out, &f); err != nil {
		return err
	}
	cert, err := tls.X509KeyPair([]byte(f.Chain), []byte(f.Key))
	if err != nil {
		return err
	}
	return a.hold(args[len(args)-1], f, &cert)
}

// hold makes a client that shows the certificate whatever the server asks for; nil shows none.
func (a *attack) hold(name string, f fetched, cert *tls.Certificate) error {
	pem, err := os.ReadFile(a.profile.Bundle)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	a.holders[name] = &holder{fetched: f, cert: cert, client: &http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg,
		MaxIdleConnsPerHost: 64}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	return nil
}

// holder finds who asks; - is a caller without a certificate.
func (a *attack) holder(name string) (*holder, error) {
	if name == "-" && a.holders[name] == nil {
		if err := a.hold("-", fetched{}, nil); err != nil {
			return nil, err
		}
	}
	h, ok := a.holders[name]
	if !ok {
		return nil, fmt.Errorf("nobody became %q", name)
	}
	return h, nil
}

func (h *holder) thumbprint() string {
	if h.cert == nil {
		return ""
	}
	sum := sha256.Sum256(h.cert.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// start RUN [workflow=W] [PARAM=VALUE…]: the operator starts a run and RUN becomes its id.
func (a *attack) start(ts *testscript.TestScript, args []string) error {
	in := api.StartRun{Workflow: a.profile.Run.Workflow, Params: maps.Clone(a.profile.Run.Params)}
	for _, arg := range args[1:] {
		k, v, _ := strings.Cut(arg, "=")
		if k == "workflow" {
			in = api.StartRun{Workflow: v, Params: map[string]string{}}
			continue
		}
		in.Params[k] = v
	}
	var r remit.Run
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := a.admin.Post(ctx, "/v1/runs", in, &r); err != nil {
		return err
	}
	ts.Setenv(args[0], string(r.ID))
	a.undo = append(a.undo, func() { _ = a.admin.Post(context.Background(), "/v1/runs/"+string(r.ID)+"/finish", nil, nil) })
	return nil
}

// token NAME RUN HOLDER: the operator lets the holder into the run; NAME becomes the run token.
func (a *attack) token(ts *testscript.TestScript, args []string) error {
	h, err := a.holder(args[2])
	if err != nil {
		return err
	}
	agent := strings.TrimPrefix(h.ID, "spiffe://"+a.profile.TrustDomain+"/")
	var t api.Token
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := a.admin.Post(ctx, "/v1/runs/"+args[1]+"/token", api.TokenRequest{Agent: remit.Name(agent), Thumbprint: h.thumbprint()}, &t); err != nil {
		return err
	}
	ts.Setenv(args[0], t.Token)
	return nil
}

// pairs reads KEY=VALUE arguments.
func pairs(args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, arg := range args {
		k, v, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not KEY=VALUE", arg)
		}
		out[k] = v
	}
	return out, nil
}

// value reads what is JSON as JSON, and everything else as text.
func value(s string) any {
	if strings.HasPrefix(s, "{") || strings.HasPrefix(s, "[") || s == "null" || s == "true" {
		if json.Valid([]byte(s)) {
			return json.RawMessage(s)
		}
	}
	return s
}

// act merges the profile's act with what an attack changes; a value of - takes a member away.
func (a *attack) act(over map[string]string) map[string]any {
	out := map[string]any{}
	for k, v := range a.profile.Act.Args {
		out[k] = value(v)
	}
	for k, v := range over {
		if v == "-" {
			delete(out, k)
			continue
		}
		out[k] = value(v)
	}
	return out
}

func take(m map[string]string, key, def string) string {
	v, ok := m[key]
	delete(m, key)
	if !ok {
		return def
	}
	return v
}

// evaluate HOLDER [KEY=VALUE…]: asks AuthZEN for the profile's act. Keys: token, action, target, type, subject, proof, run, stage, permission, under,
// body (all of it); all others are arguments.
func (a *attack) evaluate(ts *testscript.TestScript, args []string) (*answer, error) {
	h, err := a.holder(args[0])
	if err != nil {
		return nil, err
	}
	m, err := pairs(args[1:])
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	action := take(m, "action", a.profile.Act.Action)
	kind, _, _ := strings.Cut(action, ".")
	subject := object{"type": take(m, "kind.of", "agent"), "id": take(m, "subject", h.ID)}
	if proof := take(m, "proof", ""); proof != "" {
		subject["properties"] = object{"token": proof}
	}
	resource := object{"type": take(m, "type", kind), "id": take(m, "target", a.profile.Act.Target)}
	circumstances := object{}
	if t := take(m, "token", ""); t != "" {
		circumstances["run_token"] = t
	}
	for _, k := range []string{"run", "stage", "permission", "under"} {
		if v := take(m, k, ""); v != "" {
			circumstances[k] = v
		}
	}
	whole := take(m, "body", "")
	resource["properties"] = a.act(m)
	body, err := json.Marshal(object{"subject": subject, "action": object{"name": action}, "resource": resource, "context": circumstances})
	if whole != "" {
		body = []byte(whole)
	}
	if err != nil {
		return nil, err
	}
	return a.do(h, http.MethodPost, "/access/v1/evaluation", http.Header{"Content-Type": {"application/json"}}, body)
}

// ask HOLDER [KEY=VALUE…]: asks the token endpoint for a credential. Keys: token, form.NAME, details (all of them); all others are members of the
// one authorization detail.
func (a *attack) ask(_ *testscript.TestScript, args []string) (*answer, error) {
	h, err := a.holder(args[0])
	if err != nil {
		return nil, err
	}
	m, err := pairs(args[1:])
	if err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	if t := take(m, "token", ""); t != "" {
		header.Set("Txn-Token", t)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {h.ID}}
	details := take(m, "details", "")
	for k, v := range m {
		if name, ok := strings.CutPrefix(k, "form."); ok {
			delete(m, k)
			form.Set(name, v)
			if v == "-" {
				form.Del(name)
			}
		}
	}
	if _, ok := m["type"]; !ok {
		m["type"] = a.profile.Act.Action
	}
	if _, ok := m["target"]; !ok {
		m["target"] = a.profile.Act.Target
	}
	if details == "" {
		b, err := json.Marshal([]any{a.act(m)})
		if err != nil {
			return nil, err
		}
		details = string(b)
	}
	form.Set("authorization_details", details)
	if form.Get("client_id") == "" {
		form.Del("client_id")
	}
	return a.do(h, http.MethodPost, "/oauth2/token", header, []byte(form.Encode()))
}

// send HOLDER METHOD PATH [header:NAME=VALUE…] [body=TEXT | file=NAME]: any request.
func (a *attack) send(ts *testscript.TestScript, args []string) (*answer, error) {
	h, err := a.holder(args[0])
	if err != nil {
		return nil, err
	}
	m, err := pairs(args[3:])
	if err != nil {
		return nil, err
	}
	body := []byte(take(m, "body", ""))
	if name := take(m, "file", ""); name != "" {
		body = []byte(ts.ReadFile(name))
	}
	header := http.Header{}
	for k, v := range m {
		name, ok := strings.CutPrefix(k, "header:")
		if !ok {
			return nil, fmt.Errorf("%q is none of header:NAME, body, file", k)
		}
		for one := range strings.SplitSeq(v, "||") {
			header.Add(name, one)
		}
	}
	return a.do(h, args[1], args[2], header, body)
}

func (a *attack) do(h *holder, method, path string, header http.Header, body []byte) (*answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.profile.Server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	res, err := h.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) && strings.Contains(u.Err.Error(), "tls:") { // the handshake is a refusal, too
			return &answer{status: "TLS", text: u.Err.Error()}, nil
		}
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	return readAnswer(res.StatusCode, text), nil
}

// readAnswer understands the answers of all interfaces: decisions, OAuth errors, and errors of the management API.
func readAnswer(status int, text []byte) *answer {
	got := &answer{status: fmt.Sprint(status), allowed: status < 300, text: string(text)}
	type reason struct {
		Code string `json:"code"`
		Of   string `json:"of"`
	}
	var v struct {
		Decision *bool  `json:"decision"`
		Error    string `json:"error"`
		Code     any    `json:"code"`
		Reason   any    `json:"reason"`
		ID       string `json:"decision_id"`
		Reasons  []reason
		Context  struct {
			ID      string `json:"decision_id"`
			Reasons []reason
		}
	}
	if json.Unmarshal(text, &v) != nil {
		return got
	}
	if v.Decision != nil {
		got.status, got.allowed = "denied", *v.Decision
		if *v.Decision {
			got.status = "allowed"
		}
	}
	for _, s := range []any{v.Error, v.Code, v.Reason} {
		if s, ok := s.(string); ok && s != "" {
			got.reasons = append(got.reasons, s)
		}
	}
	for _, r := range append(v.Reasons, v.Context.Reasons...) {
		got.reasons = append(got.reasons, r.Code)
	}
	for _, id := range []string{v.ID, v.Context.ID} {
		if id != "" {
			got.ids = append(got.ids, id)
		}
	}
	return got
}

// jwt NAME ROLE [AUDIENCE]: the identity's user fetches a JWT-SVID for our token endpoint, or for another audience.
func (a *attack) jwt(ts *testscript.TestScript, args []string) error {
	audience := a.profile.Server
	if len(args) > 2 {
		audience = args[2]
	}
	got, err := a.fetch(ts, []string{args[1], audience})
	if err != nil {
		return err
	}
	if !got.allowed {
		return errors.New(got.text)
	}
	ts.Setenv(args[0], strings.TrimSpace(got.text))
	return nil
}

// fetch ROLE AUDIENCE [ID]: the same as an attempt.
func (a *attack) fetch(_ *testscript.TestScript, args []string) (*answer, error) {
	id, ok := a.profile.Identities[args[0]]
	if !ok {
		return nil, fmt.Errorf("the profile has no identity %q", args[0])
	}
	subject := "spiffe://" + a.profile.TrustDomain + "/" + id.Name
	if len(args) > 2 {
		subject = args[2]
	}
	out, err := asUser(context.Background(), id.UID, nil, "jwt", a.profile.Workload, args[1], subject)
	return toolAnswer(out, err), nil
}

// toolAnswer reads what the tool did: its first word on failure is the gRPC status.
func toolAnswer(out []byte, err error) *answer {
	if err == nil {
		return &answer{status: "OK", allowed: true, text: string(out)}
	}
	code, _, _ := strings.Cut(err.Error(), ":")
	if strings.ContainsAny(code, " /") {
		code = "failed"
	}
	return &answer{status: code, text: string(out) + err.Error()}
}

// tool USER [env:NAME=VALUE…] ARG…: a tool of the attacker's, run by a user of the host: a number, or an identity's.
func (a *attack) tool(_ *testscript.TestScript, args []string) (*answer, error) {
	uid, err := a.user(args[0])
	if err != nil {
		return nil, err
	}
	rest, env := args[1:], []string{}
	for len(rest) > 0 && strings.HasPrefix(rest[0], "env:") {
		env, rest = append(env, strings.TrimPrefix(rest[0], "env:")), rest[1:]
	}
	out, err := asUser(context.Background(), uid, env, rest...)
	return toolAnswer(out, err), nil
}

func (a *attack) user(name string) (*int, error) {
	if id, ok := a.profile.Identities[name]; ok {
		return id.UID, nil
	}
	var uid int
	if _, err := fmt.Sscan(name, &uid); err != nil {
		return nil, fmt.Errorf("%q is no identity and no user's number", name)
	}
	return &uid, nil
}

// manage USER METHOD PATH [BODY]: a call on the admin socket by a user of the host.
func (a *attack) manage(_ *testscript.TestScript, args []string) (*answer, error) {
	uid, err := a.user(args[0])
	if err != nil {
		return nil, err
	}
	body := ""
	if len(args) > 3 {
		body = args[3]
	}
	out, err := asUser(context.Background(), uid, nil, "admin", a.profile.Admin, args[1], args[2], body)
	if err != nil {
		return toolAnswer(out, err), nil
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	var status int
	if _, err := fmt.Sscan(first, &status); err != nil {
		return nil, err
	}
	return readAnswer(status, []byte(rest)), nil
}
