// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is a directory of PEM files: ca, server, admin (O=system:masters) and audit (the server's own client certificate
// towards webhooks), each as .crt and .key, and sa.key, which signs service account tokens.
type pki struct{ dir string }

func (p pki) file(name string) string { return filepath.Join(p.dir, name) }

// openPKI reuses what stands in dir, so that two servers on one etcd trust the same certificates and tokens.
func openPKI(dir string) (pki, error) {
	p := pki{dir}
	if _, err := os.Stat(p.file("done")); err == nil {
		return p, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return p, err
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "test cluster"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	caKey, err := p.issue("ca", ca, nil, nil)
	if err != nil {
		return p, err
	}
	leaves := map[string]*x509.Certificate{
		"server": {Subject: pkix.Name{CommonName: "kube-apiserver"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 0, 1)}},
		"admin": {Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		"webhook-client": {Subject: pkix.Name{CommonName: "kube-apiserver-webhook-client"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	}
	for name, leaf := range leaves {
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
		if _, err := p.issue(name, leaf, ca, caKey); err != nil {
			return p, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return p, err
	}
	if err := p.writeKey("sa", key); err != nil {
		return p, err
	}
	return p, os.WriteFile(p.file("done"), nil, 0o600)
}

// issue writes name.crt and name.key; a nil parent means self-signed.
func (p pki) issue(name string, tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, err
	}
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(p.file(name+".crt"), crt, 0o600); err != nil {
		return nil, err
	}
	return key, p.writeKey(name, key)
}

func (p pki) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(p.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// kubeconfig writes a kubeconfig for the administrator.
func (p pki) kubeconfig(path, server string) error {
	enc := func(name string) string {
		b, err := os.ReadFile(p.file(name))
		if err != nil {
			return ""
		}
		return base64.StdEncoding.EncodeToString(b)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: admin, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`, server, enc("ca.crt"), enc("admin.crt"), enc("admin.key"))
	return os.WriteFile(path, []byte(text), 0o600)
}
