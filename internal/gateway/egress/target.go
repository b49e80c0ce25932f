// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
)

// TargetConfig is a target of type http.
type TargetConfig struct {
	// URL is scheme, host and port, such as https://api.example.com or http://127.0.0.1:8080, with nothing after it. A request is
	// for this target if all three are exactly these. tcp://HOST:PORT is for tunnels. Required.
	URL string `yaml:"url"`
	// CA is a PEM file with the roots that the server's certificate must lead to. Left out: the host's.
	CA string `yaml:"ca"`
	// Private allows that the name leads to a loopback or private address. Metadata services and link-local addresses need addresses.
	Private bool `yaml:"private"`
	// Addresses are the only addresses or networks (10.1.0.0/16) that may be dialled, private or not. Left out: every public one.
	Addresses []string `yaml:"addresses"`
	// Tunnel passes the bytes as they are after one decision, http.connect: nothing in them is seen, decided or injected.
	Tunnel bool `yaml:"tunnel"`
	// Bodies is parsed (default) or opaque. Parsed: a JSON or form body is the argument body. Opaque: no body is looked at, of any size up to
	// 64 MiB, and a permission that lets one pass names content_type.
	Bodies string `yaml:"bodies"`
	// Headers are names of further request headers that go to the server. They are decided: what stands in one is in the argument
	// headers. Others, beside the harmless ones, are dropped.
	Headers []string `yaml:"headers"`
	// Timeout is how long the server may take to begin its answer. Default 60s, at most 15m.
	Timeout time.Duration `yaml:"timeout"`
	// Inject is the credential that requests get on the way; the tool never sees it.
	Inject *InjectConfig `yaml:"inject"`
}

// InjectConfig is a credential and for which requests it is.
type InjectConfig struct {
	_ struct{} `one:"header,basic,query,aws"`
	// Header is the header that carries the secret.
	Header string `yaml:"header"`
	// Prefix stands before the secret in the header, such as "Bearer ".
	Prefix string `yaml:"prefix"`
	// Basic is the user name; the secret is its password.
	Basic string `yaml:"basic"`
	// Query is the query parameter that carries the secret.
	Query string `yaml:"query"`
	// AWS signs requests (Signature Version 4); the secret is the secret access key.
	AWS *AWSConfig `yaml:"aws"`
	// Secret is where the secret is. Required.
	Secret SecretRef `yaml:"secret"`
	// Methods are those of the requests that get it. Required.
	Methods []string `yaml:"methods"`
	// Paths are the paths of the requests that get it, with all below them. Required; [/] is all.
	Paths []string `yaml:"paths"`
}

// AWSConfig says how requests are signed.
type AWSConfig struct {
	// Region is the region of the service.
	Region string `yaml:"region"`
	// Service is its signing name, such as s3 or dynamodb.
	Service string `yaml:"service"`
	// AccessKeyID is the id of the access key. It is no secret.
	AccessKeyID string `yaml:"access_key_id"`
	// SessionToken is of temporary credentials. Left out: none.
	SessionToken SecretRef `yaml:"session_token"`
}

// SecretRef says where a secret is.
type SecretRef struct {
	_ struct{} `one:"file,env"`
	// File is one that only the server's user can read.
	File string `yaml:"file"`
	// Env is an environment variable.
	Env string `yaml:"env"`
}

// isZero reports whether nothing is referred to.
func (r SecretRef) isZero() bool { return r.File == "" && r.Env == "" }

// Target is one checked target of type http. It never changes.
type Target struct {
	name                    string
	scheme, host, port      string // in lower case; the port is always there
	tunnel, opaque, private bool
	addresses               []netip.Prefix
	headers                 []string // canonical
	timeout                 time.Duration
	roots                   *x509.CertPool // nil: the host's
	rootsPEM                []byte
	inject                  *injection
}

const (
	defaultTimeout = 60 * time.Second
	maxTimeout     = 15 * time.Minute
)

// NewTarget checks cfg, reads its files and, by secret, its credential. It sends nothing.
func NewTarget(name string, cfg TargetConfig, secret func(SecretRef) (remit.Secret, error)) (*Target, error) {
	t := &Target{name: name, tunnel: cfg.Tunnel, private: cfg.Private, timeout: cfg.Timeout}
	if err := t.origin(cfg.URL); err != nil {
		return nil, err
	}
	if t.timeout == 0 {
		t.timeout = defaultTimeout
	}
	switch {
	case t.timeout < 0 || t.timeout > maxTimeout:
		return nil, invalid("timeout is at most %s", maxTimeout)
	case cfg.Bodies != "" && cfg.Bodies != "parsed" && cfg.Bodies != "opaque":
		return nil, invalid("bodies is parsed or opaque, not %.40q", cfg.Bodies)
	case t.scheme == "tcp" && !t.tunnel:
		return nil, invalid("tcp:// is for tunnels: add tunnel: true")
	case t.tunnel && (cfg.Inject != nil || cfg.Bodies != "" || len(cfg.Headers) > 0):
		return nil, invalid("nothing is seen in a tunnel: take out inject, bodies and headers, or tunnel")
	}
	t.opaque = cfg.Bodies == "opaque"
	for _, a := range cfg.Addresses {
		p, err := parsePrefix(a)
		if err != nil {
			return nil, err
		}
		t.addresses = append(t.addresses, p)
	}
	if err := t.readRoots(cfg.CA); err != nil {
		return nil, err
	}
	if err := t.readHeaders(cfg.Headers); err != nil {
		return nil, err
	}
	var err error
	if cfg.Inject == nil {
		return t, nil
	}
	if t.inject, err = newInjection(cfg.Inject, secret); err != nil {
		return nil, err
	}
	//remit:guard S28 TestTargetRefuses
	if h := t.inject.header; harmless[h] || slices.Contains(t.headers, h) {
		return nil, invalid("inject: the tool's own %s would go to the server: take it out of headers, or name another", h)
	}
	return t, nil
}

func (t *Target) origin(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" ||
		!slices.Contains([]string{"http", "https", "tcp"}, u.Scheme) {
		return invalid("url is https://HOST, http://HOST or tcp://HOST:PORT, with a port where it is another than the scheme's, and nothing after it")
	}
	host, port, ok := authority(u.Host, u.Scheme)
	if !ok {
		return invalid("url names no host and port that can be reached: %.80q", u.Host)
	}
	t.scheme, t.host, t.port = u.Scheme, host, port
	return nil
}

func (t *Target) readRoots(file string) error {
	if file == "" {
		return nil
	}
	if t.scheme != "https" {
		return invalid("ca is for https")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the roots of %s: %w", t.host, err)
	}
	t.roots, t.rootsPEM = x509.NewCertPool(), b
	if !t.roots.AppendCertsFromPEM(b) {
		return invalid("%s holds no certificate in PEM", file)
	}
	return nil
}

func (t *Target) readHeaders(names []string) error {
	for _, n := range names {
		h := textproto.CanonicalMIMEHeaderKey(n)
		//remit:guard S28 TestTargetRefuses
		if !token(n) || forbidden(h) {
			return invalid("the header %.60q cannot be let through: it is no name of a header, belongs to the connection, or is a credential", n)
		}
		if harmless[h] {
			return invalid("the header %s goes to the server anyway: take it out", h)
		}
		t.headers = append(t.headers, h)
	}
	return nil
}

// Server is the target's origin, for people and clients.
func (t *Target) Server() string { return t.scheme + "://" + t.hostPort() }

func (t *Target) hostPort() string { return joinHostPort(t.host, t.port) }

// hostHeader is the Host that goes upstream: without the port where it is the scheme's.
func (t *Target) hostHeader() string {
	if t.port != defaultPort[t.scheme] {
		return t.hostPort()
	}
	if strings.Contains(t.host, ":") {
		return "[" + t.host + "]"
	}
	return t.host
}

// Targets are the http targets of one revision, by origin. It never changes.
type Targets struct {
	byOrigin map[string]*Target
	all      []*Target
}

// NewTargets refuses two targets of one host and port: which of them a request is for must never be a question.
func NewTargets(list ...*Target) (*Targets, error) {
	ts := &Targets{byOrigin: map[string]*Target{}, all: list}
	for _, t := range list {
		//remit:guard S28 TestTargetsOfOneOrigin
		if other := ts.byOrigin[t.hostPort()]; other != nil {
			return nil, invalid("targets %s and %s are both %s: which one a request is for cannot be told", other.name, t.name, t.hostPort())
		}
		ts.byOrigin[t.hostPort()] = t
	}
	return ts, nil
}

// at returns the target of a host and port, whatever its scheme.
func (ts *Targets) at(host, port string) *Target {
	if ts == nil {
		return nil
	}
	return ts.byOrigin[joinHostPort(host, port)]
}

// of returns the target whose scheme, host and port these are exactly.
func (ts *Targets) of(scheme, host, port string) *Target {
	t := ts.at(host, port)
	//remit:guard S28 TestExactOrigin
	if t != nil && t.scheme != scheme {
		return nil
	}
	return t
}

var defaultPort = map[string]string{"http": "80", "https": "443"}

// authority reads HOST[:PORT] as it stands in a request. The host is a name in lower-case ASCII without a trailing dot, or an
// address in its one canonical form; anything else is nothing that a target can be.
func authority(s, scheme string) (host, port string, ok bool) {
	host, port = s, defaultPort[scheme]
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
	}
	if inner, bracket := strings.CutPrefix(host, "["); bracket {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !strings.HasSuffix(inner, "]") || !a.Is6() || a.Zone() != "" {
			return "", "", false
		}
		host = a.String()
	} else if host = strings.ToLower(host); !hostName(host) {
		return "", "", false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host, port, err == nil && n > 0 && strconv.FormatUint(n, 10) == port
}

// hostName accepts letters, digits, hyphens and underscores in labels, or an IPv4 address as netip reads it.
func hostName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
		last = label
	}
	if strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(last, "0x") {
		return true
	}
	_, err := netip.ParseAddr(s) // a last label of digits is an address, or nothing (RFC 1123, section 2.1)
	return err == nil
}

func joinHostPort(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}

func token(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

func invalid(format string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf(format, args...)}
}

// methods are those that can be decided; TRACE would show the injected credential (S28).
var methods = map[string]string{http.MethodGet: "http.get", http.MethodHead: "http.head", http.MethodPost: "http.post", http.MethodPut: "http.put",
	http.MethodPatch: "http.patch", http.MethodDelete: "http.delete", http.MethodOptions: "http.options"}

const connectAction = "http.connect"
