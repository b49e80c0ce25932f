// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// opaPolicy finds the same permission as Remit's plan, in the strongest form that we know for OPA: every step is a lookup by key, no
// list is searched, no function is called, predicates are sorted by kind beforehand, and the server keeps its data ready for reading.
// It answers less than Remit does: two of its kinds of predicate, no reasons, no epochs, and the caller's word for agent and run.
// "ruled" adds the organisation's rule.
const opaPolicy = `package remit

default decision := {"allow": false}

decision := {"allow": true, "permission": p.name, "ttl": p.ttl} if {
	not data.suspended[input.agent]
	run := data.runs[input.run]
	time.now_ns() < run.expires
	p := data.workflows[run.workflow].stages[run.stage][input.agent][input.action][input.target]
	count(input.args) == count(p.equal) + count(p.from)
	every name, value in p.equal { input.args[name] == value }
	every name, param in p.from { input.args[name] == run.params[param] }
}

deny contains "nothing is deployed into kube-system" if {
	input.args.kind == "Deployment"
	input.args.namespace == "kube-system"
}

default ruled := {"allow": false}

ruled := decision if count(deny) == 0
`

// opa is OPA's server without a decision log, by mutual TLS.
type opa struct {
	*process
	address string
	tls     *tls.Config
}

type object = map[string]any

// startOPA starts OPA on the files, by name relative to a folder of their own.
func (b *bench) startOPA(name string, client *tls.Config, files map[string][]byte) (*opa, error) {
	o := &opa{tls: client}
	var err error
	if o.address, err = freeAddress(); err != nil {
		return nil, err
	}
	for file, text := range files {
		path := b.path(name, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
			return nil, err
		}
	}
	o.process, err = b.start(name, "", o.address, b.opa, "run", "--server", "--addr", o.address, "--log-level", "error",
		"--skip-version-check", "--optimize-store-for-read-speed", "--min-tls-version", "1.3", "--authentication", "tls",
		"--tls-cert-file", b.path("server.pem"), "--tls-private-key-file", b.path("server.key"), "--tls-ca-cert-file", b.path("ca.pem"),
		b.path(name))
	return o, err
}

// side is OPA under load: its requests by agent, and what an allow looks like.
func (o *opa) side(name string, requests [][][]byte, allow string) *side {
	return &side{name: name, pid: o.pid, address: o.address, want: []byte(allow), tls: func(int) *tls.Config { return o.tls },
		requests: func(i int) [][]byte { return requests[i%len(requests)] }}
}

// certificates makes an authority with one server and one client, of the same kind of key as Remit's.
func (b *bench) certificates() (*tls.Config, error) {
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Minute),
		NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := func(n int64, usage x509.ExtKeyUsage) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: "bench"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name string
		cert *x509.Certificate
	}{{"ca", ca}, {"server", leaf(2, x509.ExtKeyUsageServerAuth)}, {"client", leaf(3, x509.ExtKeyUsageClientAuth)}} {
		key := caKey
		if c.name != "ca" {
			if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				return nil, err
			}
		}
		if err := b.writePair(c.name, c.cert, ca, key, caKey); err != nil {
			return nil, err
		}
	}
	pair, err := tls.LoadX509KeyPair(b.path("client.pem"), b.path("client.key"))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(b.path("ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "127.0.0.1"}, nil
}

func (b *bench) writePair(name string, cert, ca *x509.Certificate, key, caKey *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, ca, &key.PublicKey, caKey)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", name, err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(b.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(b.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}
