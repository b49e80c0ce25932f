// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"net/http"

	"github.com/go-jose/go-jose/v4"
)

// signalRoutes publish the keys that verify tokens, and the transmitter's metadata (SSF 1.0 section 7.1). Streams are what remit.yaml says:
// a receiver cannot make one.
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
	about := map[string]any{"spec_version": "1_0", "issuer": s.baseURL(), "jwks_uri": s.baseURL() + "/ssf/jwks.json", "delivery_methods_supported": []string{"urn:ietf:rfc:8935"}}
	for path, v := range map[string]any{"GET /.well-known/ssf-configuration": about, "GET /ssf/jwks.json": keys} {
		body, err := json.Marshal(v)
		if err != nil {
			panic("server: " + err.Error()) // plain values and public keys
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		})
	}
}
