// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"remit"
	"remit/internal/gateway"
)

// Routes adds the calls of a login below prefix.
func (h *Handler) Routes(mux *http.ServeMux, prefix string) {
	mux.HandleFunc("POST "+prefix+"/login/start", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, in Start, thumbprint string) (Started, error) {
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			if err != nil {
				return Started{}, err
			}
			return h.start(ctx, in, thumbprint, host)
		})
	})
	mux.HandleFunc("POST "+prefix+"/login/finish", func(w http.ResponseWriter, r *http.Request) { answer(w, r, h.finish) })
	mux.HandleFunc("POST "+prefix+"/login/job", func(w http.ResponseWriter, r *http.Request) { answer(w, r, h.job) })
}

// answer reads a small body strictly, asks do, and writes what it answers.
func answer[In, Out any](w http.ResponseWriter, r *http.Request, do func(context.Context, In, string) (Out, error)) {
	var in In
	thumbprint := Thumbprint(r)
	if thumbprint == "" {
		gateway.WriteError(w, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no client certificate", Hint: "log in with remit login: a session is bound to a key"})
		return
	}
	body, err := gateway.ReadBody(w, r, 32<<10)
	if err == nil {
		err = gateway.DecodeBody(body, &in)
	}
	if err != nil {
		gateway.WriteError(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 50*time.Second)
	defer cancel()
	out, err := do(ctx, in, thumbprint)
	if err != nil {
		gateway.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(out)
}

// Thumbprint is x5t#S256 (RFC 8705 section 3.1) of the client's certificate, whose key made the connection; "" without one.
func Thumbprint(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return remit.Thumbprint(r.TLS.PeerCertificates[0].Raw)
}

// Person returns whose session the request is made under.
func (h *Handler) Person(r *http.Request) (remit.Principal, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return remit.Principal{}, noSession
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok {
		return remit.Principal{}, noSession
	}
	return h.Session(token, Thumbprint(r), h.cfg.Now())
}
