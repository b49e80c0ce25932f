// SPDX-License-Identifier: Apache-2.0

// Package kubernetes is what a Kubernetes API server asks and tells Remit: POST /authorize answers SubjectAccessReviews about
// the holders of leases, POST /audit takes audit events and turns them into executed acts, joined to their leases.
//
// Both accept only the enrolled API server of one target. The package decides from leases in memory, mints nothing, keeps
// the ids of recent audit events and nothing else, never trusts a name in an event or review as proof of who acted beyond
// what that API server verified, and starts no goroutine.
package kubernetes

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"remit"
)

// Config is the gateway of one target.
type Config struct {
	Target string // name of the target; required
	// Installation is the target's; service accounts of other installations are not ours to judge.
	Installation string
	// Token is what the API server sends as bearer token, from the kubeconfig of its webhooks. Clients and ClientName are its
	// client certificate: who signs it and its common name. One of both is required; either suffices.
	Token      remit.Secret
	Clients    *x509.CertPool
	ClientName string
	// Leases answers from memory; required.
	Leases Leases
	// Decides is set for targets of mode webhook: /authorize allows what Allowed says and denies the rest. Without it, a live
	// lease's requests go on to RBAC.
	Decides bool
	// Allowed says whether a lease's scope covers a request; required with Decides.
	Allowed func(l remit.Lease, verb, group, resource, subresource, namespace, name string) bool
	// Acts gets what was executed; required.
	Acts Recorder
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Leases finds leases of all states in memory. It is safe for concurrent use and does not block.
type Leases interface {
	// ByCredential finds the lease under which a credential with that id ("JTI=…") was handed out.
	ByCredential(id string) (remit.Lease, bool)
	// ByID finds a lease by its own id.
	ByID(id remit.LeaseID) (remit.Lease, bool)
}

// Recorder makes executed acts durable. An error means that none of them is: the API server sends them again. It is safe for
// concurrent use.
type Recorder interface {
	Executed(ctx context.Context, acts []remit.Outcome) error
}

// Gateway serves the API server of one target. It is safe for concurrent use.
type Gateway struct {
	cfg    Config
	seen   recent
	probes probes
	heard  atomic.Int64 // when the last audit events came, unix nanoseconds; 0: never
}

// New checks cfg.
func New(cfg Config) (*Gateway, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	switch {
	case cfg.Target == "" || cfg.Installation == "" || cfg.Leases == nil || cfg.Acts == nil:
		return nil, errors.New("gateway/kubernetes: target, installation, leases and recorder are required")
	case cfg.Decides && cfg.Allowed == nil:
		return nil, errors.New("gateway/kubernetes: a gateway that decides needs Allowed")
	case cfg.Token.IsZero() && (cfg.Clients == nil || cfg.ClientName == ""):
		return nil, errors.New("gateway/kubernetes: the API server needs a token or a client certificate")
	}
	return &Gateway{cfg: cfg}, nil
}

// Handler serves POST /authorize and POST /audit. With client certificates, the TLS server must ask for one
// (tls.RequestClientCert suffices: it is verified here).
func (g *Gateway) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /authorize", g.authorize)
	mux.HandleFunc("POST /audit", g.audit)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		//remit:guard S36 TestOnlyTheEnrolledAPIServer
		if !g.enrolled(r) {
			http.Error(w, "not the enrolled API server of this target", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// enrolled reports whether r is from the target's API server (S36). Nothing of r's body was read yet.
func (g *Gateway) enrolled(r *http.Request) bool {
	//remit:guard S36 TestOnlyTheEnrolledAPIServer
	if r.TLS == nil {
		return false
	}
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && !g.cfg.Token.IsZero() {
		return subtle.ConstantTimeCompare([]byte(token), []byte(g.cfg.Token.Reveal())) == 1
	}
	if g.cfg.Clients == nil || g.cfg.ClientName == "" || len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	leaf, between := r.TLS.PeerCertificates[0], x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: g.cfg.Clients, Intermediates: between, CurrentTime: g.cfg.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil && leaf.Subject.CommonName == g.cfg.ClientName
}

// read decodes a JSON body of at most limit bytes; it answers the request itself when it cannot.
func read(w http.ResponseWriter, r *http.Request, limit int64, into any) bool {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		http.Error(w, "send application/json", http.StatusUnsupportedMediaType)
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	//remit:guard S35 TestBadBodies
	if err != nil {
		http.Error(w, "the body is too long or was cut off", http.StatusRequestEntityTooLarge)
		return false
	}
	if err := json.Unmarshal(body, into); err != nil {
		http.Error(w, "the body is not what this endpoint takes", http.StatusBadRequest)
		return false
	}
	return true
}

// The names that the credential driver gives at the cluster.
const (
	leaseNamespace = "remit-leases"
	accountPrefix  = "system:serviceaccount:" + leaseNamespace + ":"
	groupAgents    = "remit:agents"
	credentialKey  = "authentication.kubernetes.io/credential-id"
)

// byAccount reads the lease's id out of a service account's name, "remit-INSTALLATION-LEASE".
func (g *Gateway) byAccount(account string) (remit.LeaseID, bool) {
	rest, ok := strings.CutPrefix(account, "remit-"+g.cfg.Installation+"-")
	if !ok {
		return "", false
	}
	id, err := remit.ParseLeaseID(rest)
	return id, err == nil
}

// recent remembers at least the last `generation` ids, and at most twice as many.
type recent struct {
	mu       sync.Mutex // guards both
	now, old map[string]struct{}
}

const generation = 50_000

func (s *recent) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, now := s.now[id]
	_, old := s.old[id]
	return now || old
}

func (s *recent) add(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.now == nil || len(s.now) >= generation {
			s.old, s.now = s.now, map[string]struct{}{}
		}
		s.now[id] = struct{}{}
	}
}
