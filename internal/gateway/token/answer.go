// SPDX-License-Identifier: Apache-2.0

package token

import (
	"net/http"

	"remit"
	"remit/internal/gateway"
)

// Error codes that several places use (RFC 6749 section 5.2, RFC 8628 section 3.5).
const (
	invalidRequest       = "invalid_request"
	accessDenied         = "access_denied"
	authorizationPending = "authorization_pending"
	slowDown             = "slow_down"
	unavailable          = "temporarily_unavailable"
)

// problem is an error answer. reasons are cut to code and part when it is written (S30); cause is for the log only.
type problem struct {
	status   int // default 400
	code     string
	text     string
	retry    bool // it is worth asking again in a second
	decision remit.DecisionID
	handle   string
	reasons  []remit.Reason
	receipt  *remit.Receipt
	cause    error
}

func (p *problem) Error() string { return p.code + ": " + p.text }
func (p *problem) Unwrap() error { return p.cause }

func bad(text string) error { return &problem{code: invalidRequest, text: text} }

// write answers. Nothing of this endpoint may be kept by a cache (RFC 6749 section 5.1).
func write(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	if len(body) > 0 {
		h.Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone if this fails; the grant ends by itself
}

func (h *Handler) fail(w http.ResponseWriter, c *call, err error) {
	p, ok := err.(*problem) //nolint:errorlint // made in this package, never wrapped
	if !ok {
		p = &problem{status: http.StatusServiceUnavailable, code: unavailable, text: "a fault of the server", retry: true, cause: err}
	}
	if p.status == 0 {
		p.status = http.StatusBadRequest
	}
	if p.status >= 500 {
		h.cfg.Log.Error("token request", "client", c.client.String(), "decision", p.decision, "error", err, "cause", p.cause)
	} else if p.cause != nil { // which check refused is for operators who look for it; nobody's flood fills the log
		h.cfg.Log.Debug("token request refused", "client", c.client.String(), "status", p.status, "error", err, "cause", p.cause)
	}
	if p.retry {
		w.Header().Set("Retry-After", "1")
	}
	if p.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "POST")
	}
	write(w, p.status, p.append(nil))
}

func (p *problem) append(b []byte) []byte {
	b = remit.AppendJSONString(append(b, `{"error":`...), p.code)
	b = remit.AppendJSONString(append(b, `,"error_description":`...), plain(p.text))
	if p.decision != "" {
		b = append(append(append(b, `,"decision_id":"`...), p.decision...), '"')
	}
	if p.handle != "" {
		b = remit.AppendJSONString(append(b, `,"request_handle":`...), p.handle)
		b = append(b, `,"interval":5`...)
	}
	if p.code == accessDenied || p.code == authorizationPending {
		b = gateway.AppendReasons(append(b, `,"reasons":`...), p.reasons)
	}
	if p.receipt != nil {
		b = gateway.AppendReceipt(append(b, `,"receipt":`...), p.receipt)
	}
	return append(b, '}')
}

// plain keeps to the characters that error_description may have.
func plain(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			b[i] = '\''
		}
	}
	return string(b)
}
