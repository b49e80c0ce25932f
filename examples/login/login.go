// SPDX-License-Identifier: Apache-2.0

// Package login is how the example programs come to a database: they ask Remit for a login, with the identity and in the run that they have,
// and go there by the egress proxy where that is the only way out.
package login

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Login is a lease, as the token endpoint gives it.
type Login struct {
	Host     string    `json:"host"`
	Port     string    `json:"port"`
	Database string    `json:"database"`
	User     string    `json:"user"`
	CA       string    `json:"ca"`
	Password string    `json:"password"`
	Expires  time.Time `json:"expires"`
}

// Ask asks Remit for a login, with the certificate of source: details is one entry of authorization_details, which names the permission and what it leaves open.
func Ask(ctx context.Context, source *workloadapi.X509Source, details string) (*Login, error) {
	svid, err := source.GetX509SVID()
	if err != nil {
		return nil, err
	}
	server, err := spiffeid.FromPath(svid.ID.TrustDomain(), "/remit/server")
	if err != nil {
		return nil, err
	}
	run, err := os.ReadFile(os.Getenv("REMIT_RUN_TOKEN_FILE"))
	if err != nil {
		return nil, fmt.Errorf("read the run token: %w", err)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {svid.ID.String()}, "authorization_details": {"[" + details + "]"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, os.Getenv("REMIT_URL")+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Txn-Token", strings.TrimSpace(string(run)))
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(server))
	config.MinVersion = tls.VersionTLS13
	res, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask Remit for a login: %w", err)
	}
	defer res.Body.Close()
	return given(res)
}

func given(res *http.Response) (*Login, error) {
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var v struct {
		Password   string    `json:"access_token"`
		Expires    time.Time `json:"expires_at"`
		Credential Login     `json:"credential"`
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("no login was given: %s: %s", res.Status, body)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, fmt.Errorf("read Remit's answer: %w", err)
	}
	v.Credential.Password, v.Credential.Expires = v.Password, v.Expires
	return &v.Credential, nil
}

// Connect logs in; in a sandbox by the proxy, which knows the database's name: there is no DNS.
func (l *Login) Connect(ctx context.Context) (*pgx.Conn, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(l.CA)) {
		return nil, errors.New("the login names no authority of the server")
	}
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s dbname=%s user=%s sslmode=verify-full", l.Host, l.Port, l.Database, l.User))
	if err != nil {
		return nil, err
	}
	cfg.Password, cfg.TLSConfig = l.Password, &tls.Config{RootCAs: roots, ServerName: l.Host, MinVersion: tls.VersionTLS12}
	if os.Getenv("HTTPS_PROXY") != "" {
		cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
		cfg.DialFunc = tunnel
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// tunnel dials by CONNECT of the HTTP proxy.
func tunnel(ctx context.Context, _, address string) (net.Conn, error) {
	proxy, err := url.Parse(os.Getenv("HTTPS_PROXY"))
	if err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", proxy.Host)
	if err != nil {
		return nil, err
	}
	if _, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address); err == nil {
		var res *http.Response
		// The server speaks first only once it was spoken to, so that nothing of it is read here.
		if res, err = http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect}); err == nil && res.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
			err = fmt.Errorf("the way to %s: %s: %s", address, res.Status, body)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
