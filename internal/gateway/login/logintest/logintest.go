// SPDX-License-Identifier: Apache-2.0

// Package logintest runs a real OpenID provider (oidc-provider of npm, with the node of the PATH) for tests of logins, and is the
// browser of those who log in. Start ends the process when the test ends.
package logintest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// ClientID is Remit's at the provider.
const ClientID = "remit"

// Provider is a running OpenID provider.
type Provider struct {
	Issuer string
	CA     []byte // PEM
}

// Account is what the provider says of a person.
type Account struct {
	Subject string   `json:"sub"`
	Name    string   `json:"preferred_username"`
	Groups  []string `json:"groups"`
}

// root is the repository's.
func root() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// ErrMissing: node or its packages are not there.
var ErrMissing = errors.New("the OpenID provider is not installed: make node")

// Start runs a provider with accounts by name. Without node or its packages the test is skipped: make test installs them.
func Start(t testing.TB, accounts map[string]Account) *Provider {
	t.Helper()
	p, stop, err := Run(accounts)
	if errors.Is(err, ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return p
}

// Run runs a provider until stop is called.
func Run(accounts map[string]Account) (p *Provider, stop func(), err error) {
	dir, err := root()
	if err != nil {
		return nil, nil, err
	}
	dir = filepath.Join(dir, "test", "node")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "oidc-provider")); err != nil {
		return nil, nil, ErrMissing
	}
	p, settings, err := certificate()
	if err != nil {
		return nil, nil, err
	}
	settings["accounts"], settings["client"] = accounts, ClientID
	b, err := json.Marshal(settings)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("node", "provider.mjs")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "PROVIDER="+string(b), "NODE_NO_WARNINGS=1")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, nil, err
	}
	stop = func() { _ = in.Close(); _ = cmd.Wait() }
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "https://") {
			p.Issuer = lines.Text()
			go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
			return p, stop, nil
		}
	}
	stop()
	return nil, nil, errors.New("the OpenID provider did not start")
}

func certificate() (*Provider, map[string]any, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	der, err1 := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	private, err2 := x509.MarshalPKCS8PrivateKey(key)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &Provider{CA: cert}, map[string]any{"cert": string(cert), "key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))}, errors.Join(err1, err2)
}

// Client verifies the provider's certificate.
func (p *Provider) Client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.CA)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}, Timeout: 30 * time.Second}
}

// Browse visits an address as the account's browser does, follows where it is sent, and returns the query of the loopback address
// where it ends; the loopback is visited only when visit is set. "" is somebody whom the provider refuses.
func (p *Provider) Browse(account, address string, visit bool) (url.Values, error) {
	client, err := p.browser(account)
	if err != nil {
		return nil, err
	}
	var back url.Values
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		r.Header.Set("X-Test-Account", account)
		if r.URL.Scheme == "http" {
			back = r.URL.Query()
			if !visit {
				return http.ErrUseLastResponse
			}
		}
		if len(via) > 20 {
			return errors.New("sent on and on")
		}
		return nil
	}
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Test-Account", account)
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && back == nil {
		err = fmt.Errorf("the browser ends at %s: %d %.300s", res.Request.URL, res.StatusCode, b)
	}
	return back, err
}

func (p *Provider) browser(account string) (*http.Client, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	c := p.Client()
	c.Jar = jar
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		r.Header.Set("X-Test-Account", account)
		return nil
	}
	return c, nil
}

var hidden = regexp.MustCompile(`name="xsrf" value="([^"]+)"`)

// Approve types a device login's code as the account, and confirms it.
func (p *Provider) Approve(account, address, code string) error {
	c, err := p.browser(account)
	if err != nil {
		return err
	}
	page, err := p.form(c, account, address, nil)
	if err != nil {
		return err
	}
	for _, more := range []url.Values{{"user_code": {code}}, {"user_code": {code}, "confirm": {"yes"}}} {
		m := hidden.FindStringSubmatch(page)
		if m == nil {
			return fmt.Errorf("no form: %.300s", page)
		}
		more.Set("xsrf", m[1])
		if page, err = p.form(c, account, address, more); err != nil {
			return err
		}
	}
	if page != "done" {
		return fmt.Errorf("the device login ends with %.300s", page)
	}
	return nil
}

func (p *Provider) form(c *http.Client, account, address string, form url.Values) (string, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	req, err := http.NewRequest(method, address, body)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-Test-Account", account)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}
