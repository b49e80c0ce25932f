// SPDX-License-Identifier: Apache-2.0

package story

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// apart says that this program has a mount namespace of its own.
const apart = "REMIT_DEMO_APART"

// Apart starts this program once more in a mount namespace of its own, where names of companies can lead to the loopback, and returns
// its exit code; again is false in the one that was started.
func Apart(name string) (code int, again bool) {
	if os.Getenv(apart) != "" {
		return 0, false
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec // this program
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), apart+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, name+": a mount namespace is needed:", err)
		return 1, true
	}
	go func() {
		for s := range interrupts { // of a terminal it has its own already, which does no harm
			_ = cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() > 0 {
			return e.ExitCode(), true
		}
		return 1, true
	}
	return 0, true
}

// Hosts gives the story's processes an /etc/hosts of their own, in which the names lead to the loopback. It needs Apart.
func (s *Story) Hosts(names ...string) error {
	file := s.Path("hosts")
	if err := os.WriteFile(file, []byte("127.0.0.1 localhost "+strings.Join(names, " ")+"\n"), 0o644); err != nil {
		return err
	}
	return syscall.Mount(file, "/etc/hosts", "", syscall.MS_BIND, "")
}

// Secret is a key such as a service gives.
func (s *Story) Secret(prefix string) string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[s.Rand.IntN(36)]
	}
	return prefix + string(b)
}

// API is a company's HTTP API: whoever has the key gets what Answer says, and all that comes is noted. It is safe for concurrent use.
type API struct {
	Key    string
	Answer func(r *http.Request, body []byte) any // nil: not found

	mu       sync.Mutex // guards requests
	requests []string
}

func (a *API) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, fmt.Sprintf(format, args...))
}

// Seen are the requests so far: method, address and body.
func (a *API) Seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+a.Key)) != 1 {
		a.note("%s %s without the key", r.Method, r.URL)
		http.Error(w, "no key", http.StatusUnauthorized)
		return
	}
	a.note("%s %s %s", r.Method, r.URL, body)
	answer := a.Answer(r, body)
	if answer == nil {
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// ServeAPI serves an API as https://HOST:PORT until the story ends, under a certificate of its own authority, which it writes to the file.
func (s *Story) ServeAPI(a *API, host, ca string) (url string, err error) {
	root, key, err := CertificatePEM(host)
	if err != nil {
		return "", err
	}
	cert, err := tls.X509KeyPair(root, key)
	if err != nil {
		return "", err
	}
	server := httptest.NewUnstartedServer(a)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	s.Stop(server.Close)
	return "https://" + net.JoinHostPort(host, Port(server.Listener)), os.WriteFile(ca, root, 0o644)
}

// Port is where somebody listens.
func Port(ln net.Listener) string {
	_, port, _ := strings.Cut(ln.Addr().String(), ":")
	return port
}

// CertificatePEM makes a certificate for a host, which is its own authority, and its key.
func CertificatePEM(host string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err1 := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	private, err2 := x509.MarshalPKCS8PrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), errors.Join(err1, err2)
}
