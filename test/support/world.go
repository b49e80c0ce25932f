// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The names that lead to the loopback for everything that is part of the story.
const (
	deskHost     = "desk.company.example"
	attackerHost = "collect.attacker.example"
)

// hosts gives the story's processes an /etc/hosts of their own.
func (s *support) hosts(context.Context) error {
	file := s.Path("hosts")
	if err := os.WriteFile(file, fmt.Appendf(nil, "127.0.0.1 localhost %s %s\n", deskHost, attackerHost), 0o644); err != nil {
		return err
	}
	return syscall.Mount(file, "/etc/hosts", "", syscall.MS_BIND, "")
}

// outside is what tools and the attacker can want to reach: the internal API and the attacker's host. Both note whatever comes.
type outside struct {
	key     string
	tickets map[string]string // texts by id
	records map[string]string // by customer

	mu       sync.Mutex // guards the rest
	requests []string   // of the internal API
	calls    []string   // of the attacker's host
}

func (o *outside) note(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, fmt.Sprintf(format, args...))
}

func (o *outside) seen() (requests, calls []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.requests), slices.Clone(o.calls)
}

// ServeHTTP is the internal API. Like some real ones it repeats, when asked what it received, the key that it received.
func (o *outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+o.key)) != 1 {
		o.note("%s %s without the key", r.Method, r.URL)
		http.Error(w, "no key", http.StatusUnauthorized)
		return
	}
	o.note("%s %s %s", r.Method, r.URL, body)
	id := r.URL.Query().Get("id")
	var answer any
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/tickets":
		answer = map[string]string{"id": id, "text": o.tickets[id]}
	case "GET /v1/customers":
		answer = map[string]string{"id": id, "record": o.records[id]}
	case "POST /v1/notes":
		answer = map[string]bool{"stored": true}
	case "GET /v1/diagnose":
		answer = map[string]any{"headers": r.Header}
	default:
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// startDesk starts the internal API under a certificate of its own authority.
func (s *support) startDesk(context.Context) error {
	cert, ca, err := certificate(deskHost)
	if err != nil {
		return err
	}
	server := httptest.NewUnstartedServer(s.outside)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	s.Stop(server.Close)
	s.desk = "https://" + net.JoinHostPort(deskHost, port(server.Listener))
	return os.WriteFile(s.Path("desk-ca.pem"), ca, 0o644)
}

// startAttacker listens for whoever calls.
func (s *support) startAttacker(context.Context) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.attacker = net.JoinHostPort(attackerHost, port(ln))
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(time.Second))
			b := make([]byte, 200)
			n, _ := c.Read(b)
			s.outside.mu.Lock()
			s.outside.calls = append(s.outside.calls, string(b[:n]))
			s.outside.mu.Unlock()
			_ = c.Close()
		}
	})
	s.Stop(func() { _ = ln.Close(); work.Wait() })
	return nil
}

func port(ln net.Listener) string {
	_, port, _ := strings.Cut(ln.Addr().String(), ":")
	return port
}

// certificate makes one for a host, and the authority's own in PEM.
func certificate(host string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}
