// SPDX-License-Identifier: Apache-2.0

package evidencetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is the OpenID issuer of a CI system, over TLS on the loopback: discovery, keys, and tokens with the claims of GitHub Actions or
// GitLab. It is safe for concurrent use.
type Issuer struct {
	URL string
	CA  []byte // PEM

	server *http.Server
	mu     sync.Mutex // guards the rest
	key    *ecdsa.PrivateKey
	keyID  string
	change func(path string, document map[string]any) // of what is served
	asked  map[string]int
}

// NewIssuer starts an issuer; Close ends it.
func NewIssuer() (*Issuer, error) {
	i := &Issuer{asked: map[string]int{}}
	cert, err := i.certificate()
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	i.URL = "https://" + l.Addr().String()
	if err := i.Rotate("k1"); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	i.server = &http.Server{Handler: http.HandlerFunc(i.serve), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = i.server.Serve(l) }() // until Close
	return i, nil
}

// Close ends the server.
func (i *Issuer) Close() { _ = i.server.Close() }

func (i *Issuer) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ci"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	i.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Client verifies the issuer's certificate.
func (i *Issuer) Client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(i.CA)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}, Timeout: 20 * time.Second}
}

// Rotate replaces the key; the old one is withdrawn.
func (i *Issuer) Rotate(keyID string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.keyID = key, keyID
	return err
}

// Change alters each document before it is served.
func (i *Issuer) Change(change func(path string, document map[string]any)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.change = change
}

// Asked says how often a path was asked for.
func (i *Issuer) Asked(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked[r.URL.Path]++
	doc := map[string]any{}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		doc = map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}}
	case "/keys":
		doc["keys"] = []any{jose.JSONWebKey{Key: i.key.Public(), KeyID: i.keyID, Algorithm: "ES256", Use: "sig"}}
	default:
		http.NotFound(w, r)
		return
	}
	if i.change != nil {
		i.change(r.URL.Path, doc)
	}
	_ = json.NewEncoder(w).Encode(doc)
}

// Header is what a token's header says beside what is signed for; nil leaves a member out.
type Header map[string]any

// Token signs claims as they are, by the issuer's key unless another is given, with header members changed.
func (i *Issuer) Token(claims map[string]any, change Header, with *ecdsa.PrivateKey) (string, error) {
	i.mu.Lock()
	header := Header{"alg": "ES256", "typ": "JWT", "kid": i.keyID}
	if with == nil {
		with = i.key
	}
	i.mu.Unlock()
	maps.Copy(header, change)
	maps.DeleteFunc(header, func(_ string, v any) bool { return v == nil })
	h, err1 := json.Marshal(header)
	c, err2 := json.Marshal(claims)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
	sum := crypto.SHA256.New()
	sum.Write([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, with, sum.Sum(nil))
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// GitHubRun is what GitHub Actions says of a job of company/foo that a push to main started, in the environment production.
func (i *Issuer) GitHubRun(audience string, at time.Time) map[string]any {
	return map[string]any{"iss": i.URL, "aud": audience, "iat": at.Unix(), "nbf": at.Unix(), "exp": at.Add(5 * time.Minute).Unix(), "jti": rand.Text(),
		"sub": "repo:company/foo:environment:production", "repository": "company/foo", "repository_id": "4711", "repository_owner": "company",
		"repository_owner_id": "42", "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "event_name": "push",
		"environment": "production", "sha": "4f3c0de0000000000000000000000000000000aa", "run_id": "1001", "run_attempt": "1",
		"workflow_ref":     "company/foo/.github/workflows/release.yml@refs/heads/main",
		"job_workflow_ref": "company/foo/.github/workflows/release.yml@refs/heads/main", "runner_environment": "github-hosted", "actor": "rita"}
}

// GitLabJob is what GitLab says of such a job.
func (i *Issuer) GitLabJob(audience string, at time.Time) map[string]any {
	return map[string]any{"iss": i.URL, "aud": audience, "iat": at.Unix(), "nbf": at.Unix(), "exp": at.Add(time.Hour).Unix(), "jti": rand.Text(),
		"sub": "project_path:company/foo:ref_type:branch:ref:main", "project_path": "company/foo", "project_id": "4711", "namespace_id": "42",
		"namespace_path": "company", "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
		"pipeline_source": "push", "environment": "production", "sha": "4f3c0de0000000000000000000000000000000aa", "pipeline_id": "1001", "job_id": "2002",
		"ci_config_ref_uri": "gitlab.com/company/foo//.gitlab-ci.yml@refs/heads/main", "runner_environment": "gitlab-hosted", "user_login": "rita"}
}
