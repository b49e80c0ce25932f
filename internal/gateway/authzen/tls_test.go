// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"remit/internal/gateway"
	"remit/internal/gateway/gatewaytest"
)

// TestOverTLS: a real server and client; one connection is verified once, and its principal is nobody else's.
func TestOverTLS(t *testing.T) {
	f := newFixture(t, allow)
	s := httptest.NewUnstartedServer(f.handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{f.SVID(f.ID("/remit/server"))}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnContext = gateway.Connection
	s.StartTLS()
	defer s.Close()
	foreign := gatewaytest.New(t, "company.com", base)
	for _, c := range []struct {
		name  string
		certs []tls.Certificate
		want  int
	}{
		{"agent", []tls.Certificate{f.SVID(f.deploy)}, http.StatusOK},
		{"nobody's", nil, http.StatusUnauthorized},
		{"another authority's", []tls.Certificate{foreign.SVID(f.deploy)}, http.StatusUnauthorized},
		{"not enrolled", []tls.Certificate{f.SVID(f.ID("/nobody"))}, http.StatusForbidden},
	} {
		transport := &http.Transport{MaxConnsPerHost: 1, TLSClientConfig: &tls.Config{RootCAs: f.Pool(), ServerName: "localhost", Certificates: c.certs}}
		before := f.Verified.Load()
		for range 5 {
			res, err := (&http.Client{Transport: transport}).Post(s.URL+single, "application/json", strings.NewReader(sound))
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if res.StatusCode != c.want {
				t.Errorf("%s: %d %s", c.name, res.StatusCode, body)
			}
		}
		if n := f.Verified.Load() - before; c.want == http.StatusOK && n != 1 {
			t.Errorf("%s: verified %d times on one connection", c.name, n)
		}
		transport.CloseIdleConnections()
	}
	for _, req := range f.line.asked {
		if req.Agent != "agent/deploy" || req.Caller.ID != f.deploy {
			t.Errorf("asked as %+v", req)
		}
	}
}
