// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit/internal/signal"
)

const (
	verifyEvery  = time.Minute // between two verifications of a stream
	streamBody   = 64 << 10    // bytes of a request
	methodPush   = "urn:ietf:rfc:8935"
	methodPoll   = "urn:ietf:rfc:8936"
	ssfEndpoints = "/ssf/"
)

// signalRoutes publish the keys that verify tokens, the transmitter's metadata (SSF 1.0 section 7.1), and what a receiver may see and ask of its own
// stream (section 8.1). Streams are what remit.yaml says: a receiver cannot make, change or end one.
func (s *Server) signalRoutes(mux *http.ServeMux) {
	keys := jose.JSONWebKeySet{}
	for _, r := range s.receivers {
		if r.signer != nil {
			keys.Keys = append(keys.Keys, r.signer.Public())
		}
	}
	if len(keys.Keys) == 0 {
		return
	}
	at := s.baseURL() + ssfEndpoints
	about := map[string]any{"spec_version": "1_0", "issuer": s.baseURL(), "jwks_uri": at + "jwks.json", "delivery_methods_supported": []string{methodPush, methodPoll},
		"configuration_endpoint": at + "streams", "status_endpoint": at + "status", "verification_endpoint": at + "verify", "default_subjects": "ALL",
		"authorization_schemes": []any{map[string]string{"spec_urn": "urn:ietf:rfc:6750"}}}
	for path, v := range map[string]any{"GET /.well-known/ssf-configuration": about, "GET /ssf/jwks.json": keys} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, v) })
	}
	mux.HandleFunc("GET /ssf/streams", s.stream(s.streamConfig))
	mux.HandleFunc("GET /ssf/status", s.stream(s.streamStatus))
	mux.HandleFunc("POST /ssf/verify", s.stream(s.streamVerify))
	mux.HandleFunc("POST /ssf/poll/{stream}", s.stream(s.streamPoll))
	for _, path := range []string{"/ssf/streams", "/ssf/status"} {
		mux.HandleFunc(path, s.stream(func(w http.ResponseWriter, _ *http.Request, _ *receiver) {
			http.Error(w, "streams are what the transmitter's remit.yaml says", http.StatusForbidden)
		}))
	}
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the receiver is gone, if anything
}

// stream lets a receiver of tokens in by its own token, and nobody else; the stream is then the receiver's.
func (s *Server) stream(do func(http.ResponseWriter, *http.Request, *receiver)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		given, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		var who *receiver
		for _, x := range s.receivers {
			if x.signer != nil && len(x.token.Reveal()) >= 24 && sameSecret(given, x.token.Reveal()) {
				who = x
			}
		}
		//remit:guard S30 TestSignalStreams
		if !bearer || who == nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token of the stream's receiver is needed", http.StatusUnauthorized)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, streamBody)
		do(w, r, who)
	}
}

// sameSecret compares in a time that tells nothing, of the lengths neither.
func sameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// its reports whether a stream that a receiver names is its own; for another one it answers as if there were none.
func its(w http.ResponseWriter, r *receiver, stream string) bool {
	//remit:guard S30 TestSignalStreams
	if stream != r.cfg.Name {
		http.Error(w, "there is no such stream", http.StatusNotFound)
		return false
	}
	return true
}

func (s *Server) streamConfig(w http.ResponseWriter, req *http.Request, r *receiver) {
	var events []string
	for _, t := range []signal.Topic{signal.Findings, signal.Credentials} {
		if r.tells[t] {
			events = append(events, signal.EventsOf(t)...)
		}
	}
	delivery := map[string]string{"method": methodPush, "endpoint_url": r.cfg.URL}
	if r.cfg.Form == "poll" {
		delivery = map[string]string{"method": methodPoll, "endpoint_url": s.baseURL() + ssfEndpoints + "poll/" + r.cfg.Name}
	}
	c := map[string]any{"stream_id": r.cfg.Name, "iss": s.baseURL(), "aud": r.signer.Audience(), "delivery": delivery, "events_delivered": events,
		"events_supported":          []string{signal.SessionRevoked, signal.RiskLevelChange, signal.CredentialChange},
		"min_verification_interval": int(verifyEvery.Seconds())}
	if !req.URL.Query().Has("stream_id") {
		answerJSON(w, []any{c})
		return
	}
	if its(w, r, req.URL.Query().Get("stream_id")) {
		answerJSON(w, c)
	}
}

func (s *Server) streamStatus(w http.ResponseWriter, req *http.Request, r *receiver) {
	if its(w, r, req.URL.Query().Get("stream_id")) {
		answerJSON(w, map[string]string{"stream_id": r.cfg.Name, "status": "enabled"})
	}
}

func (s *Server) streamVerify(w http.ResponseWriter, req *http.Request, r *receiver) {
	var in struct {
		Stream string `json:"stream_id"`
		State  string `json:"state"`
	}
	if !readStream(w, req, &in) || !its(w, r, in.Stream) {
		return
	}
	if len(in.State) > 1024 {
		http.Error(w, "state has more than 1024 bytes", http.StatusBadRequest)
		return
	}
	if !r.mayVerify(s.now()) {
		http.Error(w, "one verification a minute", http.StatusTooManyRequests)
		return
	}
	select {
	case r.verify <- in.State:
	default: // one waits to be delivered
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) streamPoll(w http.ResponseWriter, req *http.Request, r *receiver) {
	if r.cfg.Form != "poll" {
		http.Error(w, "this stream is pushed", http.StatusNotFound)
		return
	}
	in := pollRequest{}
	if !its(w, r, req.PathValue("stream")) || !readStream(w, req, &in) {
		return
	}
	out, err := s.polled(req.Context(), r, &in)
	if err != nil {
		http.Error(w, "try again", statusOf(err))
		return
	}
	answerJSON(w, out)
}

// readStream reads a JSON object; what it does not know it leaves, as RFC 8936 and SSF say.
func readStream(w http.ResponseWriter, req *http.Request, into any) bool {
	b, err := io.ReadAll(req.Body)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		http.Error(w, "the body is no request of this endpoint", http.StatusBadRequest)
		return false
	}
	return true
}
