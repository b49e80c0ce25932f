// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/subtle"
	"html/template"
	"net/http"
	"strings"

	"remit"
)

// approvalPage is what the links of announcements, and of held calls, lead to. Opening it decides nothing, whoever opens it, a preview included: it says
// how to look at the request, and holds a button that denies. Nothing on it approves.
var approvalPage = template.Must(template.New("approval").Parse(`<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Approval</title>
<h1>{{.ID}}</h1>
{{if .Said}}<p>{{.Said}}</p>{{else}}<p>It waits for people. To see what is asked, and to approve it, in a session of your own:</p>
<pre>remit login --server {{.Server}} --ca bundle.pem
remit approval show {{.ID}}
remit approval approve {{.ID}}</pre>
<p>bundle.pem is the server's, from whoever runs it; the first line is needed once a session. <code>remit approval show</code> says what
would be allowed, for how long and within which bounds.</p>
{{if .Token}}<form method="post"><input type="hidden" name="deny" value="{{.Token}}"><button>Deny it</button></form>{{end}}{{end}}
</html>
`))

type pageData struct{ ID, Server, Token, Said string }

// approvalRoutes adds the page. It needs no session: what it shows is only what the link says already.
func (s *Server) approvalRoutes(mux *http.ServeMux) {
	show := func(w http.ResponseWriter, status int, d pageData) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; form-action 'self'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		w.WriteHeader(status)
		_ = approvalPage.Execute(w, d) // the reader is gone if this fails
	}
	mux.HandleFunc("GET /approvals/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := remit.ParseHoldID(r.PathValue("id"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		show(w, http.StatusOK, pageData{ID: string(id), Server: s.baseURL(), Token: r.URL.Query().Get("deny")})
	})
	mux.HandleFunc("POST /approvals/{id}", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		id, err := remit.ParseHoldID(r.PathValue("id"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		if err := s.denyByLink(r, id, r.PostFormValue("deny")); err != nil {
			status, said := http.StatusForbidden, "This link denies nothing: it is not one of ours, or its request was answered already."
			if remit.CodeOf(err) == remit.CodeUnavailable || remit.CodeOf(err) == remit.CodeInternal {
				status, said = http.StatusServiceUnavailable, "It could not be recorded. Try again."
			}
			show(w, status, pageData{ID: string(id), Said: said})
			return
		}
		show(w, http.StatusOK, pageData{ID: string(id), Said: "Denied, for as long as its run lives."})
	})
}

// denyByLink denies a request by the token of one webhook's link. It is recorded in the webhook's name: which of its readers it was,
// nobody knows.
func (s *Server) denyByLink(r *http.Request, id remit.HoldID, token string) error {
	refused := &remit.Error{Code: remit.CodeForbidden, Msg: "not a link of ours"}
	name, mac, ok := strings.Cut(token, ".")
	if !ok {
		return refused
	}
	for try := 0; ; try++ {
		h, epoch, err := s.held(id)
		if err != nil {
			return err
		}
		//remit:guard S39 TestDenyLink
		if subtle.ConstantTimeCompare([]byte(mac), []byte(denyToken(&h, name))) != 1 {
			return refused
		}
		//remit:guard S39 TestDenyLink
		if h.State != remit.HeldPending {
			return refused
		}
		now := s.now()
		h.Answers = append(h.Answers[:len(h.Answers):len(h.Answers)], remit.Answer{Person: remit.Name("webhook/" + name), At: now})
		h.State, h.Ended = remit.HeldDenied, now
		_, err = s.store.Commit(r.Context(), remit.Change{Rows: []remit.Row{h}, Require: []remit.Precondition{{Key: h.EpochKey(), Epoch: epoch}},
			Events: []remit.Event{approvalEvent(&h, remit.EventRefused, now, "webhook/"+name, "link")}})
		if remit.CodeOf(err) != remit.CodeConflict || try == 3 {
			return err
		}
	}
}
