// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands between Remit and the API server: it ends TLS on loopback, counts, and lets a test step in. Its connections to
// the API server outlive Remit.
type proxy struct {
	*httptest.Server
	upstream string
	client   *http.Client
	calls    atomic.Int64

	mu sync.Mutex // guards what follows
	// before is called when the n-th request has been read; hold, if it is not nil, is waited for before it goes on.
	before func(n int64, r *http.Request) (hold <-chan struct{})
	after  func(n int64) // the n-th answer was written
	wg     sync.WaitGroup
}

func newProxy(t *testing.T, c *cluster) *proxy {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CA)
	p := &proxy{upstream: c.URL, client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 16}}}
	p.Server = httptest.NewTLSServer(p)
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
		p.wg.Wait()
		p.client.CloseIdleConnections()
	})
	return p
}

// ca is what the broker's kubeconfig trusts.
func (p *proxy) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
}

func (p *proxy) set(before func(int64, *http.Request) <-chan struct{}, after func(int64)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before, p.after = before, after
}

func (p *proxy) hooks() (func(int64, *http.Request) <-chan struct{}, func(int64)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.before, p.after
}

// ServeHTTP passes a request on whether its sender still lives or not: what was sent has been sent.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.wg.Add(1)
	defer p.wg.Done()
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		return
	}
	before, after := p.hooks()
	n := p.calls.Add(1)
	if before != nil {
		if hold := before(n, r); hold != nil {
			<-hold
		}
	}
	out, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, p.upstream+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	out.Header = r.Header.Clone()
	res, err := p.client.Do(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	for k, v := range res.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(res.StatusCode)
	_, _ = io.Copy(w, res.Body)
	_ = http.NewResponseController(w).Flush()
	if after != nil {
		after(n)
	}
}
