// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// backdate is how far behind a verifier's clock may be.
const backdate = 10 * time.Second

// leaf is what an X.509-SVID is made of.
type leaf struct {
	id          spiffeid.ID
	names       []string
	ips         []net.IP
	from, until time.Time
	key         *ecdsa.PublicKey
}

// signLeaf makes the one profile that every consumer accepts: exactly one URI SAN, no CA, digitalSignature alone, client and
// server authentication, never longer than the authority (X509-SVID specification, section 4; RFC 5280 section 4.2).
func signLeaf(ca *slot, l leaf) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	until := l.until
	//remit:guard S7 TestNothingOutlivesItsKey
	if until.After(ca.notAfter) {
		until = ca.notAfter
	}
	return create(&x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: slug(l.id)},
		NotBefore:             l.from.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{l.id.URL()},
		DNSNames:              l.names,
		IPAddresses:           l.ips,
	}, ca.chain[0], l.key, ca.key)
}

// slug is the subject's common name: the path without slashes and colons, at most 64 characters. It identifies nobody.
func slug(id spiffeid.ID) string {
	s := strings.ReplaceAll(strings.TrimPrefix(id.Path(), "/"), "/", "-")
	return s[:min(len(s), 64)]
}

func (a *Authority) certifyRoot(key *ecdsa.PrivateKey, from, until time.Time) ([]*x509.Certificate, error) {
	template, err := a.authorityTemplate("root", &key.PublicKey, from, until)
	if err != nil {
		return nil, err
	}
	template.MaxPathLen = 1
	cert, err := create(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert}, nil
}

func (a *Authority) certifyIssuing(key *ecdsa.PrivateKey, from, until time.Time) ([]*x509.Certificate, error) {
	root, err := a.root.current()
	if err != nil {
		return nil, err
	}
	if until.After(root.notAfter) {
		until = root.notAfter
	}
	template, err := a.authorityTemplate("issuing", &key.PublicKey, from, until)
	if err != nil {
		return nil, err
	}
	template.MaxPathLenZero = true
	cert, err := create(template, root.chain[0], &key.PublicKey, root.key)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert}, nil
}

// authorityTemplate is the profile of both authorities. The common name carries the key's id, so that two generations never have
// the same name. The URI SAN is the trust domain, without path.
func (a *Authority) authorityTemplate(kind string, key *ecdsa.PublicKey, from, until time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "remit " + kind + " " + keyID(key)},
		NotBefore:             from.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{a.cfg.TrustDomain.ID().URL()},
	}, nil
}

func create(template, parent *x509.Certificate, key *ecdsa.PublicKey, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, fmt.Errorf("create certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	return cert, nil
}

// newSerial returns a random positive number of at most 127 bits (RFC 5280 section 4.1.2.2 wants it to fit 20 octets).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
