// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"net/http"
	"strconv"
	"strings"

	"remit"
	"remit/internal/gateway"
)

// refusal is what the tool is told: {code, message, hint}, and of a decision its id and what an agent may see of its reasons (S30).
type refusal struct {
	status        int
	code          remit.Code
	message, hint string
	id            remit.DecisionID
	reasons       []remit.Reason
}

func denied(d *remit.Decision) *refusal {
	f := &refusal{status: http.StatusForbidden, code: remit.CodeDenied, id: d.ID, reasons: d.Reasons}
	f.message = d.Action + " to " + remit.Clip(d.Target, 200) + " was denied"
	if d.Effect == remit.Hold {
		f.code, f.message = remit.CodeHeld, d.Action+" to "+remit.Clip(d.Target, 200)+" waits for a person"
	}
	var codes []string
	for _, r := range d.Reasons {
		codes = append(codes, strings.TrimSpace(string(r.Code)+" "+r.Of))
	}
	if len(codes) > 0 {
		f.message += ": " + strings.Join(codes, ", ")
		f.hint = gateway.Next(d.Reasons[0].Code)
	}
	return f
}

func refusalOf(err error) *refusal {
	f := &refusal{status: http.StatusBadRequest, code: remit.CodeOf(err), message: text(err)}
	if e, ok := asError(err); ok {
		f.hint = e.Hint
	}
	if f.code == remit.CodeExhausted {
		f.status = http.StatusRequestEntityTooLarge
	}
	return f
}

func unrecorded() *refusal {
	return &refusal{status: http.StatusServiceUnavailable, code: remit.CodeUnavailable, message: "the request could not be decided: nothing was sent",
		hint: "ask again in a moment"}
}

func (f *refusal) body() []byte {
	b := remit.AppendJSONString([]byte(`{"code":`), string(f.code))
	b = remit.AppendJSONString(append(b, `,"message":`...), f.message)
	if f.hint != "" {
		b = remit.AppendJSONString(append(b, `,"hint":`...), f.hint)
	}
	if f.id != "" {
		b = remit.AppendJSONString(append(b, `,"id":`...), string(f.id))
	}
	if len(f.reasons) > 0 {
		b = gateway.AppendReasons(append(b, `,"reasons":`...), f.reasons)
	}
	return append(b, "}\n"...)
}

// write answers in place of the server that was meant; Proxy-Status (RFC 9209) says so.
func (f *refusal) write(w http.ResponseWriter) {
	b := f.body()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Header().Set("Cache-Control", "no-store")
	kind := "http_request_denied"
	if f.status >= http.StatusInternalServerError {
		kind = "proxy_internal_response"
	}
	w.Header().Set("Proxy-Status", "remit; error="+kind)
	w.WriteHeader(f.status)
	_, _ = w.Write(b)
}
