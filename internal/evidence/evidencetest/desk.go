// SPDX-License-Identifier: Apache-2.0

package evidencetest

import (
	"bufio"
	"bytes"
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
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// deskEnv makes a test binary a ticket system: a process of its own, with TLS.
const deskEnv = "REMIT_TEST_DESK"

// DeskMain turns the process into the ticket system when StartDesk started it, and then does not return. Every TestMain of a
// package that uses StartDesk calls it first.
func DeskMain() {
	if os.Getenv(deskEnv) == "" {
		return
	}
	if err := serveDesk(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Reply is how the desk answers for one path. PUT stores it, GET gives it.
type Reply struct {
	Status   int           `json:"status"`
	Location string        `json:"location"`
	Delay    time.Duration `json:"delay"`
	Body     string        `json:"body"`
	Endless  bool          `json:"endless"`
}

type deskServer struct {
	mu      sync.Mutex
	replies map[string]Reply
	asked   map[string]int
}

// ServeHTTP keys everything by the path as it came over the wire.
func (d *deskServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case r.Method == http.MethodPut:
		var in Reply
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		d.replies[path] = in
		return
	case strings.HasPrefix(path, "/asked/"):
		fmt.Fprint(w, d.asked[strings.TrimPrefix(path, "/asked")])
		return
	}
	d.asked[path]++
	out, ok := d.replies[path]
	if !ok || r.Header.Get("Authorization") != "Bearer desk-token" {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	d.mu.Unlock()
	time.Sleep(out.Delay) // the slow mode: a real process is slow in real time
	d.mu.Lock()
	if out.Location != "" {
		w.Header().Set("Location", out.Location)
	}
	w.WriteHeader(out.Status)
	_, err := io.WriteString(w, out.Body)
	for out.Endless && err == nil { // until the client has had enough
		_, err = io.WriteString(w, strings.Repeat(" ", 4096))
	}
}

// serveDesk prints its address and certificate, and ends with its standard input.
func serveDesk() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "desk"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		return err
	}
	server := &http.Server{Handler: &deskServer{replies: map[string]Reply{}, asked: map[string]int{}}, ReadHeaderTimeout: time.Second, ErrorLog: nil}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	fmt.Println(l.Addr())
	if err := pem.Encode(os.Stdout, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = server.Close()
	<-done
	return nil
}

// Desk is the ticket system as a test sees it.
type Desk struct {
	t      *testing.T
	URL    string // https://127.0.0.1:PORT
	CA     string // file
	client *http.Client
}

// StartDesk starts the ticket system and ends it with the test.
func StartDesk(t *testing.T) *Desk {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env, cmd.Stderr = append(os.Environ(), deskEnv+"=1", "GORACE=atexit_sleep_ms=0"), os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("desk: %v", err)
		}
	})
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	d := &Desk{t: t, URL: "https://" + lines.Text(), CA: filepath.Join(t.TempDir(), "ca.pem")}
	var ca bytes.Buffer
	for lines.Scan() && lines.Text() != "ready" {
		ca.WriteString(lines.Text() + "\n")
	}
	if err := os.WriteFile(d.CA, ca.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Bytes())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	d.client = &http.Client{Transport: transport}
	return d
}

// Put stores how the desk answers for a path.
func (d *Desk) Put(path string, r Reply) {
	d.t.Helper()
	if r.Status == 0 {
		r.Status = http.StatusOK
	}
	b, err := json.Marshal(r)
	if err != nil {
		d.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPut, d.URL+path, bytes.NewReader(b))
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	_ = resp.Body.Close()
}

// Asked returns how often a path was read.
func (d *Desk) Asked(path string) string {
	d.t.Helper()
	resp, err := d.client.Get(d.URL + "/asked" + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}
