// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/authzen"
	"remit/internal/gateway/gatewaytest"
)

// yes is a line that allows and keeps nothing, so that a benchmark measures the handler alone.
type yes struct{ gateway.Line }

func (yes) Decide(_ context.Context, req *remit.Request) (remit.Decision, error) {
	return remit.Decision{ID: "dec-aaaaaaaaaaaaaaaaaaaaaaaaaa", Effect: remit.Allow, Receipt: &receipt}, nil
}

var receipt = remit.Receipt{Seq: 123456, Leaf: make([]byte, 32), First: 123450, Size: 32, Key: "ledger",
	Path: [][]byte{make([]byte, 32), make([]byte, 32), make([]byte, 32), make([]byte, 32), make([]byte, 32)}, Signature: make([]byte, 64)}

func benchBody(f *fixture) string {
	f.Runs["rt"] = gatewaytest.Run{ID: remit.NewRunID(), Agent: f.deploy}
	return strings.Replace(sound, `{"subject"`, `{"context":{"run_token":"rt","stage":"deploy","permission":"apply"},"subject"`, 1)
}

// sink is a ResponseWriter that costs nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(int)             {}

func BenchmarkHandler(b *testing.B) {
	f := newFixture(b, nil, func(c *authzen.Config) { c.Line = yes{} })
	body := benchBody(f)
	reader := strings.NewReader(body)
	r := httptest.NewRequest(http.MethodPost, single, nil)
	r = r.WithContext(gateway.Connection(context.Background(), nil))
	r.TLS, r.ContentLength, r.Body = f.certs["/agent/deploy"].TLS, int64(len(body)), io.NopCloser(reader)
	r.Header.Set("Content-Type", "application/json")
	w := &sink{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		reader.Reset(body)
		f.handler.ServeHTTP(w, r)
	}
}

// BenchmarkServer is the handler behind mutual TLS and keep-alive at 64 connections; clients share the processors.
func BenchmarkServer(b *testing.B) {
	for _, connect := range []bool{true, false} {
		name := map[bool]string{true: "remembered", false: "verified-each-time"}[connect]
		b.Run(name, func(b *testing.B) { benchServer(b, connect) })
	}
}

func benchServer(b *testing.B, remember bool) {
	f := newFixture(b, nil, func(c *authzen.Config) { c.Line = yes{} })
	body := benchBody(f)
	s := httptest.NewUnstartedServer(f.handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{f.SVID(f.ID("/remit/server"))}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if remember {
		s.Config.ConnContext = gateway.Connection
	}
	s.StartTLS()
	defer s.Close()
	cert := f.SVID(f.deploy)
	transport := &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{RootCAs: f.Pool(), ServerName: "localhost",
		Certificates: []tls.Certificate{cert}}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	b.SetParallelism(32) // × 2 processors
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			res, err := client.Post(s.URL+single, "application/json", strings.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
				b.Errorf("%d %v", res.StatusCode, err)
			}
			_ = res.Body.Close()
		}
	})
}
