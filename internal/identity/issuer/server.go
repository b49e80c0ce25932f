// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit/internal/identity"
)

// ServerCertificate is the certificate of Remit's own TLS endpoints: the X.509-SVID of spiffe://DOMAIN/remit/server that also
// carries DNS names and addresses, so that clients without SPIFFE (an API server, curl) verify it against the bundle's roots. It
// is renewed at half its life, or when its root was dropped. It is safe for concurrent use.
type ServerCertificate struct {
	authority *Authority
	names     []string
	ips       []net.IP

	mu    sync.Mutex // guards cert and renew
	cert  *tls.Certificate
	renew time.Time
}

// ServerCertificate makes the first certificate, so that a wrong name shows at the start.
func (a *Authority) ServerCertificate(names []string, ips []net.IP) (*ServerCertificate, error) {
	s := &ServerCertificate{authority: a, names: slices.Clone(names), ips: slices.Clone(ips)}
	_, err := s.Get()
	return s, err
}

// GetCertificate is for tls.Config.
func (s *ServerCertificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.Get()
}

// Get returns a certificate that is valid now, with its chain up to the root, which is left out.
func (s *ServerCertificate) Get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.authority.cfg.Now()
	if s.cert != nil && now.Before(s.renew) && s.authority.stands(s.cert.Leaf, s.cert.Certificate[1:]) {
		return s.cert, nil
	}
	cert, err := s.mint()
	if err != nil {
		if s.cert != nil && now.Before(s.cert.Leaf.NotAfter) {
			return s.cert, nil // until its end; Run tries to get a key that can sign
		}
		return nil, err
	}
	s.cert, s.renew = cert, now.Add(cert.Leaf.NotAfter.Sub(now)/2)
	return cert, nil
}

func (s *ServerCertificate) mint() (*tls.Certificate, error) {
	id, err := spiffeid.FromPath(s.authority.cfg.TrustDomain, identity.ServerPath)
	if err != nil {
		return nil, fmt.Errorf("name the server: %w", err)
	}
	svid, err := s.authority.mintX509(id, 0, s.names, s.ips)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// stands reports whether the certificate still verifies against the published roots.
func (a *Authority) stands(leaf *x509.Certificate, chain [][]byte) bool {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, s := range a.root.state.Load().slots {
		roots.AddCert(s.chain[0])
	}
	var errs []error
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: a.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return errors.Join(append(errs, err)...) == nil
}
