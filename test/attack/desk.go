// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit"
	"remit/internal/evidence/evidencetest"
)

const deskToken = "desk-token"

// desk is the ticket system of the laboratory, whose accounts an attacker may have.
type desk struct {
	url    string
	server *http.Server
	mu     sync.Mutex // guards the rest
	reply  map[string]string
	delay  time.Duration
}

// ServeHTTP answers with the ticket of that path, as it came over the wire.
func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	body, ok := d.reply[r.RequestURI]
	delay := d.delay
	d.mu.Unlock()
	if delay > 0 {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(delay):
		}
	}
	if !ok || r.Header.Get("Authorization") != "Bearer "+deskToken {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	_, _ = io.WriteString(w, body)
}

func (d *desk) close() { _ = d.server.Close() }

func (l *lab) startDesk(context.Context, string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "desk"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		return err
	}
	l.desk = &desk{url: "https://" + ln.Addr().String(), reply: map[string]string{}}
	l.desk.server = &http.Server{Handler: l.desk, ReadHeaderTimeout: time.Second}
	go func() { _ = l.desk.server.Serve(ln) }()
	return os.WriteFile(l.path("desk.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// desk ID [KEY=VALUE…]: the ticket system answers for that id, with an approved ticket that differs in what is said. Keys: number, state, service, namespace,
// start, end (as durations from now), requester, approver, requester_groups, approver_groups.
func (a *attack) desk(_ *testscript.TestScript, args []string) error {
	m, err := pairs(args[1:])
	if err != nil {
		return err
	}
	from := func(key, def string) string {
		d, err := time.ParseDuration(take(m, key, def))
		if err != nil {
			return key
		}
		return time.Now().Add(d).UTC().Format(time.RFC3339)
	}
	type object = map[string]any
	ticket := object{"number": take(m, "number", args[0]), "state": take(m, "state", "approved"), "service": take(m, "service", "foo"),
		"namespace": take(m, "namespace", "production"), "window": object{"start": from("start", "-1h"), "end": from("end", "1h")},
		"requester": object{"login": take(m, "requester", "alice"), "groups": []string{take(m, "requester_groups", "platform")}},
		"approver":  object{"login": take(m, "approver", "bob"), "groups": []string{take(m, "approver_groups", "change-board")}}}
	delay, err := time.ParseDuration(take(m, "delay", "0s"))
	if err != nil || len(m) > 0 {
		return fmt.Errorf("what is %v? %w", m, err)
	}
	b, err := json.Marshal(ticket)
	if err != nil {
		return err
	}
	d := a.profile.lab.desk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
	d.reply["/api/changes/"+args[0]] = string(b)
	a.undo = append(a.undo, func() { d.mu.Lock(); d.delay = 0; d.mu.Unlock() })
	return nil
}

// sign FILE [by=scanner|builds|stranger] [KEY=VALUE…]: a signed statement. Keys of a scan: id, digest, severity, age; of a build: build=true, digest, repository,
// ref, workflow, event, protected; spoil=true flips a bit of the signature.
func (a *attack) sign(ts *testscript.TestScript, args []string) error {
	m, err := pairs(args[1:])
	if err != nil {
		return err
	}
	age, err := time.ParseDuration(take(m, "age", "0s"))
	if err != nil {
		return err
	}
	digest := []remit.Digest{remit.Digest(take(m, "digest", ts.Getenv("DIGEST")))}
	signer, at := a.profile.lab.signers[take(m, "by", "scanner")], time.Now().Add(-age)
	statement := evidencetest.Scan{ID: take(m, "id", "scan-1"), Image: "foo", Subjects: digest, Finished: at,
		Findings: []evidencetest.Finding{{ID: "CVE-2026-0001", Severity: take(m, "severity", "low")}}}.Statement()
	if take(m, "build", "") != "" {
		statement = evidencetest.Provenance{Image: "foo", Subjects: digest, Finished: at, Repository: take(m, "repository", "https://github.com/company/foo"),
			RepositoryID: "1", Ref: take(m, "ref", "refs/heads/main"), Commit: strings.Repeat("a", 40), Workflow: take(m, "workflow", ".github/workflows/release.yml"),
			Event: take(m, "event", "push"), Protected: take(m, "protected", "true") == "true", Invocation: "1"}.Statement()
	}
	envelope, err := signer.Sign(statement)
	if err != nil {
		return err
	}
	if take(m, "spoil", "") != "" {
		envelope = []byte(strings.Replace(string(envelope), `"sig":"ME`, `"sig":"MF`, 1))
	}
	if len(m) > 0 {
		return fmt.Errorf("what is %v?", m)
	}
	return os.WriteFile(ts.MkAbs(args[0]), envelope, 0o644)
}
