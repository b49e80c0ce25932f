// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"
)

// authorityOf signs the certificates that one box sees. It lives in memory, ends with the box's time, and is bound by name constraints
// to the hosts of the targets: whoever trusts it trusts it for nothing else.
type authorityOf struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
	now  func() time.Time

	mu     sync.Mutex // guards leaves
	leaves map[string]*tls.Certificate
}

const (
	defaultLife = 24 * time.Hour
	leafLife    = time.Hour
)

func newAuthority(hosts []string, until time.Time, now func() time.Time) (*authorityOf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the box's authority: %w", err)
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "Remit egress, one box"}, SerialNumber: serial(),
		NotBefore: now().Add(-time.Minute), NotAfter: until, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, PermittedDNSDomainsCritical: true,
		// A name that nobody has: without one, no constraint would mean every name.
		PermittedDNSDomains: []string{"none.remit.internal"}}
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			bits := a.BitLen()
			c.PermittedIPRanges = append(c.PermittedIPRanges, &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)})
		} else {
			c.PermittedDNSDomains = append(c.PermittedDNSDomains, h)
		}
	}
	if len(c.PermittedIPRanges) == 0 {
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			_, n, _ := net.ParseCIDR(all)
			c.ExcludedIPRanges = append(c.ExcludedIPRanges, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the box's authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return &authorityOf{key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), now: now,
		leaves: map[string]*tls.Certificate{}}, err
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[0] = b[0]&0x7f | 1
	return new(big.Int).SetBytes(b)
}

// leaf returns a certificate for the host of a target. There are no more of them than targets.
func (a *authorityOf) leaf(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if l := a.leaves[host]; l != nil && now.Before(l.Leaf.NotAfter.Add(-leafLife/2)) {
		return l, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	until := now.Add(leafLife)
	if a.cert.NotAfter.Before(until) {
		until = a.cert.NotAfter
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "Remit egress"}, SerialNumber: serial(), NotBefore: now.Add(-time.Minute), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a.leaves[host] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return a.leaves[host], nil
}

// config is the TLS side that the tool sees of one host. A name in the handshake that is not the one in CONNECT is refused.
func (a *authorityOf) config(host string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			//remit:guard S28 TestServerNameIsTheHost
			if !sameName(hello.ServerName, host) {
				return nil, fmt.Errorf("the handshake names %.80q, CONNECT named %s", hello.ServerName, host)
			}
			return a.leaf(host)
		}}
}

// sameName: an address has no server name (RFC 6066, section 3).
func sameName(serverName, host string) bool {
	if net.ParseIP(host) != nil {
		return serverName == ""
	}
	return serverName == host
}
