// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"remit"
)

// maxAnswer bounds what a client reads of one answer.
const maxAnswer = 64 << 20

// Client talks to the admin socket, or to the same calls over HTTPS. It is safe for concurrent use.
type Client struct {
	http   *http.Client
	socket string // for messages: where the server is
	base   string
	token  remit.Secret // of the session; zero on the socket
}

// Remote is where a server is reached over HTTPS, and by whom.
type Remote struct {
	URL   string          // https://HOST:PORT
	Roots *x509.CertPool  // nil: the system's
	Key   tls.Certificate // whose key the session is bound to
	Token remit.Secret    // of the session; zero before the login
}

// remotePrefix is where the management API stands on the HTTPS address.
const remotePrefix = "/admin"

// NewRemote returns a client of the management API at an HTTPS address.
func NewRemote(r Remote) (*Client, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%q is not the URL of a server", r.URL), Hint: "write https://HOST:PORT"}
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.Roots, Certificates: []tls.Certificate{r.Key}}}
	base := strings.TrimSuffix(r.URL, "/")
	return &Client{http: &http.Client{Transport: transport, Timeout: 2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		socket: base, base: base + remotePrefix, token: r.Token}, nil
}

// NewClient returns a client of the admin socket at address, "unix:///PATH" or a path.
func NewClient(address string) (*Client, error) {
	path := strings.TrimPrefix(address, "unix://")
	if path == "" || strings.Contains(path, "://") {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%q is not the address of an admin socket", address),
			Hint: "write unix:///PATH/admin.sock, or set REMIT_SERVER"}
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
	}
	return &Client{http: &http.Client{Transport: transport, Timeout: 2 * time.Minute}, socket: path, base: "http://admin"}, nil
}

// Get reads path with query into out.
func (c *Client) Get(ctx context.Context, path string, query url.Values, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// Post sends in as JSON and reads the answer into out; either may be nil.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	return c.do(ctx, http.MethodPost, path, in, out)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if !c.token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c.unreachable(err)
	}
	if res.StatusCode >= 300 {
		return asError(res.StatusCode, b)
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	return nil
}

func (c *Client) unreachable(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return &remit.Error{Code: remit.CodeUnavailable, Msg: "the server did not answer in time", Cause: err}
	}
	if errors.Is(err, fs.ErrPermission) {
		return &remit.Error{Code: remit.CodeForbidden, Msg: "this user may not open " + c.socket,
			Hint: "only the server's own user and operators of remit.yaml reach it: run this as one of them", Cause: err}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &remit.Error{Code: remit.CodeUnavailable, Msg: "the server at " + c.socket + " is not who it should be", Cause: err,
			Hint: "log in again with --ca and the server's bundle.pem, got by a way that you trust"}
	}
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "cannot reach the server at " + c.socket,
		Hint: "start it with remit serve, or name its socket with --server", Cause: err}
}

func asError(status int, body []byte) error {
	var e remit.Error
	if err := json.Unmarshal(body, &e); err != nil || e.Code == "" {
		return &remit.Error{Code: remit.CodeInternal, Msg: fmt.Sprintf("the server answered %d", status)}
	}
	return &e
}
