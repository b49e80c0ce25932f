// SPDX-License-Identifier: Apache-2.0

package ticket

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"remit"
	"remit/internal/evidence"
)

// maxReply is the greatest length of a reply, in bytes.
const maxReply = 256 << 10

// errUnavailable marks a system that does not answer, or not as agreed: the ticket may be as it likes.
var errUnavailable = errors.New("the ticket system does not answer")

// errNoTicket marks a system that answered that there is no such ticket.
var errNoTicket = errors.New("there is no such ticket")

// errReply marks a reply that cannot be read.
var errReply = errors.New("the reply cannot be read")

// ticket is one reply, parsed.
type ticket struct {
	fields     map[string]string
	requesters []string // the requester's groups
	approvers  []string // the approver's groups
	start, end time.Time
	digest     remit.Digest
	read       time.Time
}

// newClient makes an HTTP client that verifies the server and follows nobody elsewhere.
func newClient(cfg *Config) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CA != "" {
		b, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "ca: " + err.Error(), Hint: "name a PEM file", Cause: err}
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b) {
			return nil, invalid("ca: no certificate in the file", "name a PEM file")
		}
	}
	return &http.Client{
		Timeout: cfg.Timeout,
		//remit:guard S15 TestDeskFails
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, MaxConnsPerHost: 16, MaxIdleConnsPerHost: 4,
			IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10},
	}, nil
}

// fetch reads the ticket now.
func (s *Source) fetch(ctx context.Context, id string) (ticket, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	asked := s.deps.Now() // before the reply was made: the fact is not younger than this
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.Replace(s.cfg.URL, "{id}", url.PathEscape(id), 1), http.NoBody)
	if err != nil {
		return ticket{}, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	req.Header.Set("Accept", "application/json")
	if s.cfg.Token != (SecretRef{}) {
		token, err := s.deps.Secret(s.cfg.Token)
		if err != nil || token.IsZero() {
			return ticket{}, fmt.Errorf("%w: its token cannot be read: %w", errUnavailable, err)
		}
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return ticket{}, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	defer func() { _ = resp.Body.Close() }() // what matters was read
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone:
		return ticket{}, errNoTicket
	default:
		return ticket{}, fmt.Errorf("%w: status %d", errUnavailable, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return ticket{}, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	t, err := parse(body, &s.cfg)
	t.read = asked
	return t, err
}

// parse reads a reply. Every configured field must be there with one printable value, groups with at least one.
func parse(body []byte, cfg *Config) (ticket, error) {
	doc, err := evidence.ParseJSON(body, maxReply)
	if err != nil {
		return ticket{}, fmt.Errorf("%w: %w", errReply, err)
	}
	t := ticket{fields: map[string]string{}, digest: remit.DigestOf(body)}
	for name, pointer := range cfg.Fields {
		n := doc.At(pointer)
		switch name {
		case "requester_groups":
			t.requesters = n.Texts()
		case "approver_groups":
			t.approvers = n.Texts()
		default:
			v := n.Scalar()
			//remit:guard S15 TestWrongTicketHasItsOwnReason
			if v == "" || len(v) > 512 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				return ticket{}, fmt.Errorf("%w: %s is missing, over 512 bytes or not printable", errReply, name)
			}
			t.fields[name] = v
		}
	}
	for name, into := range map[string]*time.Time{"start": &t.start, "end": &t.end} {
		if *into, err = time.Parse(time.RFC3339Nano, t.fields[name]); err != nil {
			return ticket{}, fmt.Errorf("%w: %s is not a time", errReply, name)
		}
	}
	return t, nil
}
