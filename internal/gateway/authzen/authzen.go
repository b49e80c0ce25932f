// SPDX-License-Identifier: Apache-2.0

// Package authzen is the policy decision point of the AuthZEN Authorization API 1.0: it turns evaluation requests into
// remit.Requests, asks the line, and answers. Callers are enrolled enforcement points, which may ask for others within
// their enrolment (S6), and agents, which may ask for themselves; both by mutual TLS.
//
//	POST /access/v1/evaluation                 one decision (section 6)
//	POST /access/v1/evaluations                several (section 7)
//	GET  /.well-known/authzen-configuration    metadata (section 9)
//	POST /access/v1/requests                   a task for a held evaluation (Access Request and Approval profile)
//	GET  /access/v1/requests/ID                how it stands
//
// How a request is read:
//
//	subject   {type: agent | tool | workload | spiffe, id: SPIFFE ID, properties: {token, "x5t#S256"}}
//	action    {name: the action, properties: arguments}
//	resource  {type: the action's part before its first dot, id: the target, properties: arguments}
//	context   {run_token, run, stage, permission, under, supported_obligations, approval: {id}}
//
// Nothing in it is believed because it stands there. The subject is the caller itself, or proven by properties.token, a
// JWT-SVID for this server; or the enforcement point is enrolled to assert subjects, which then have attestation level none
// and whose certificate thumbprint "x5t#S256" is what the enforcement point saw. The run is the run token's; context.run must
// equal it. Everything else in subject and context is ignored, as the specification wants. Every well-formed request of an
// enrolled caller is decided and recorded by the line, also those that are refused here; a denial is status 200.
//
// The package never mints, never searches, and starts goroutines only within a batch, for which it waits.
package authzen

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/gateway"
)

// Config is what a Handler needs; Base, Line, Authenticator, RunTokens and Directory are required.
type Config struct {
	Base          string // https URL that clients use, without a trailing slash; metadata repeats it byte by byte
	Line          gateway.Line
	Authenticator gateway.Authenticator
	RunTokens     gateway.RunTokens
	Directory     gateway.Directory
	Holds         Holds            // nil: the profile of access requests is not served
	Agents        *gateway.Quota   // per agent; nil: unbounded
	Points        *gateway.Quota   // per enforcement point; nil: unbounded
	Timeout       time.Duration    // of one request; default 10 s
	Log           *slog.Logger     // faults, for operators; default slog.Default()
	Now           func() time.Time // default time.Now
}

// Handler serves the addresses below Base's path. It is safe for concurrent use. Its http.Server should have
// gateway.Connection as ConnContext, and must ask for client certificates.
type Handler struct {
	cfg      Config
	path     string // of Base
	metadata []byte
	bodies   sync.Pool // of *[]byte, for one body and its answer; what is sent is never longer than what was just written
}

// New checks cfg.
func New(cfg Config) (*Handler, error) {
	if cfg.Line == nil || cfg.Authenticator == nil || cfg.RunTokens == nil || cfg.Directory == nil {
		return nil, errors.New("authzen: a part is missing")
	}
	u, err := url.Parse(cfg.Base)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(cfg.Base, "/") {
		return nil, errors.New("authzen: Base must be an https URL without query, fragment and trailing slash")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &Handler{cfg: cfg, path: u.Path}
	h.bodies.New = func() any { b := make([]byte, 0, 4096); return &b }
	b := remit.AppendJSONString([]byte(`{"policy_decision_point":`), cfg.Base)
	b = remit.AppendJSONString(append(b, `,"access_evaluation_endpoint":`...), cfg.Base+"/access/v1/evaluation")
	b = remit.AppendJSONString(append(b, `,"access_evaluations_endpoint":`...), cfg.Base+"/access/v1/evaluations")
	if cfg.Holds != nil {
		b = remit.AppendJSONString(append(b, `,"access_request_endpoint":`...), cfg.Base+accessPath)
		b = remit.AppendJSONString(append(b, `,"capabilities":[`...), capability)
		b = append(b, ']')
	}
	h.metadata = append(b, '}')
	return h, nil
}

// wellKnown is where metadata stands: before the path of Base, so that a tenant's follows it (section 9.2).
const wellKnown = "/.well-known/authzen-configuration"

// ServeHTTP implements http.Handler; see the package comment.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if id := r.Header["X-Request-Id"]; len(id) > 0 {
		w.Header()["X-Request-Id"] = id[:1]
	}
	if path, ok := strings.CutPrefix(r.URL.Path, h.path); ok {
		switch path {
		case "/access/v1/evaluation":
			h.serve(w, r, h.single)
			return
		case "/access/v1/evaluations":
			h.serve(w, r, h.batch)
			return
		}
		if task, ok := strings.CutPrefix(path, accessPath); ok && h.cfg.Holds != nil && (task == "" || task[0] == '/') {
			if task == "" {
				h.serve(w, r, h.access)
			} else {
				h.serveTask(w, r, task[1:])
			}
			return
		}
	}
	if r.URL.Path != wellKnown+h.path {
		fail(w, &remit.Error{Code: remit.CodeNotFound, Msg: "no such endpoint"})
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		methodNotAllowed(w, "GET, HEAD")
		return
	}
	answer(w, http.StatusOK, h.metadata)
}

// asking is one HTTP request in flight.
type asking struct {
	ctx     context.Context
	at      time.Time
	caller  caller
	account *gateway.Account
	text    string
}

// serve reads who asks and what, and writes what do appends.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, do func(a *asking, b []byte) ([]byte, error)) {
	if r.Method != http.MethodPost {
		methodNotAllowed(w, "POST")
		return
	}
	buf := h.bodies.Get().(*[]byte)
	defer h.bodies.Put(buf)
	a := asking{at: h.cfg.Now()}
	defer func() { a.account.Leave() }()
	err := h.admit(&a, r, buf)
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), h.cfg.Timeout)
		defer cancel()
		a.ctx = ctx
		*buf, err = do(&a, (*buf)[:0])
	}
	if err != nil {
		if remit.CodeOf(err) == remit.CodeInternal || remit.CodeOf(err) == remit.CodeUnavailable {
			h.cfg.Log.Error("authzen request", "caller", a.caller.principal.String(), "error", err)
		} else {
			h.cfg.Log.Debug("authzen request refused", "caller", a.caller.principal.String(), "error", err)
		}
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, *buf)
}

// admit fills in caller, account and body, in this order: who is not known is not read.
func (h *Handler) admit(a *asking, r *http.Request, buf *[]byte) error {
	size := int(min(uint64(r.ContentLength), gateway.MaxBody)) // unknown, which is -1, counts as the most
	err := h.known(a, r, size)
	if err != nil {
		return err
	}
	if !isJSON(r.Header.Get("Content-Type")) {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the content type must be application/json"}
	}
	if *buf, err = readBody(r, (*buf)[:0]); err != nil {
		return err
	}
	a.text = string(*buf)
	return nil
}

// known fills in caller and account.
func (h *Handler) known(a *asking, r *http.Request, size int) error {
	p, err := gateway.Caller(r, h.cfg.Authenticator, a.at)
	if err != nil {
		return err
	}
	//remit:guard S6 TestCallersOwnStanding
	if a.caller, err = h.who(p); err != nil {
		return err
	}
	quota := h.cfg.Agents
	if a.caller.point != nil {
		quota = h.cfg.Points
	}
	var ok bool
	//remit:guard S35 TestQuota
	if a.account, ok = quota.Enter(string(a.caller.name), size, a.at); !ok {
		quota.Brake(r.Context())
		return errQuota()
	}
	return nil
}

func errQuota() error {
	return &remit.Error{Code: remit.CodeExhausted, Msg: "more requests than this caller's quota", Hint: "ask again in a second"}
}

func isJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	t, params, err := mime.ParseMediaType(contentType)
	charset := params["charset"]
	return err == nil && t == "application/json" && (charset == "" || strings.EqualFold(charset, "utf-8"))
}

func readBody(r *http.Request, b []byte) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		//remit:guard S35 TestBadRequests
		if len(b) > gateway.MaxBody {
			return b, invalid("the body is longer than " + strconv.Itoa(gateway.MaxBody) + " bytes")
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, &remit.Error{Code: remit.CodeInvalid, Msg: "the body could not be read", Cause: err}
		}
	}
}

// answer writes JSON. The header's name is in canonical form, which saves what Set would do.
func answer(w http.ResponseWriter, status int, body []byte) {
	header := w.Header()
	header["Content-Type"] = []string{"application/json"}
	header["Cache-Control"] = []string{"no-store"}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone if this fails
}

func methodNotAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	answer(w, http.StatusMethodNotAllowed, remit.AppendJSONString(nil, "the method must be "+allow))
}

// fail writes an error: its body is a JSON string (section 10.1.2).
func fail(w http.ResponseWriter, err error) {
	status, msg := problem(err)
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	answer(w, status, remit.AppendJSONString(nil, msg))
}

// problem translates an error, once, to what callers may know of it.
func problem(err error) (status int, msg string) {
	e, ok := errors.AsType[*remit.Error](err)
	if !ok {
		return http.StatusInternalServerError, "no answer could be recorded; take this as a denial"
	}
	msg = e.Msg
	if e.Hint != "" {
		msg += "; " + e.Hint
	}
	switch e.Code {
	case remit.CodeInvalid:
		return http.StatusBadRequest, msg
	case remit.CodeUnauthenticated:
		return http.StatusUnauthorized, msg
	case remit.CodeForbidden:
		return http.StatusForbidden, msg
	case remit.CodeNotFound:
		return http.StatusNotFound, msg
	case remit.CodeExhausted:
		return http.StatusTooManyRequests, msg
	case remit.CodeUnavailable:
		return http.StatusServiceUnavailable, "a part that is needed does not answer; take this as a denial"
	}
	return http.StatusInternalServerError, "no answer could be recorded; take this as a denial"
}
