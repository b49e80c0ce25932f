// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
)

// verifier is the server's side of Signature Version 4, as AWS documents it ("Create a signed AWS API request"), from what arrived: it
// shares no code with the signer.
type verifier struct {
	region, service, secret string
}

func (v verifier) signature(r *http.Request, payload string) (want, got string) {
	_, list, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
	list, _, _ = strings.Cut(list, ",")
	_, got, _ = strings.Cut(r.Header.Get("Authorization"), "Signature=")
	path, query, _ := strings.Cut(r.RequestURI, "?")
	canonical := path // as it was sent
	if v.service == "s3" {
		canonical, _ = url.PathUnescape(path)
	}
	canonical = uriEncode(canonical, true)
	var pairs []string
	for p := range strings.SplitSeq(query, "&") {
		if p != "" {
			name, value, _ := strings.Cut(p, "=")
			n, _ := url.PathUnescape(name)
			x, _ := url.PathUnescape(value)
			pairs = append(pairs, uriEncode(n, false)+"="+uriEncode(x, false))
		}
	}
	slices.Sort(pairs)
	var head strings.Builder
	for h := range strings.SplitSeq(list, ";") {
		value := strings.Join(r.Header.Values(h), ",")
		switch h {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		head.WriteString(h + ":" + strings.TrimSpace(value) + "\n")
	}
	all := strings.Join([]string{r.Method, canonical, strings.Join(pairs, "&"), head.String(), list, payload}, "\n")
	at := r.Header.Get("X-Amz-Date")
	scope := at[:8] + "/" + v.region + "/" + v.service + "/aws4_request"
	key := []byte("AWS4" + v.secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+at+"\n"+scope+"\n"+sha(all))), got
}

// uriEncode is AWS's UriEncode.
func uriEncode(s string, path bool) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0, path && c == '/':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func sha(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

const (
	suiteKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" // of AWS's test suite
	docsKey  = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" // of S3's documentation
)

// TestVerifierOfSignatures: the test's own verifier computes the signatures of AWS's published test suite (aws-sig-v4-test-suite).
func TestVerifierOfSignatures(t *testing.T) {
	for name, c := range map[string]struct{ head, want string }{
		"get-vanilla":             {"GET / HTTP/1.1\r\n", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		"get-utf8":                {"GET /\u1234 HTTP/1.1\r\n", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
		"get-vanilla-query-order": {"GET /?Param2=value2&Param1=value1 HTTP/1.1\r\n", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		"post-vanilla":            {"POST / HTTP/1.1\r\n", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	} {
		r := parse(t, c.head+"Host: example.amazonaws.com\r\nX-Amz-Date: 20150830T123600Z\r\n"+
			"Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=x\r\n\r\n")
		if name == "get-utf8" {
			r.RequestURI = "/\u1234" // not encoded, as the suite has it
		}
		if got, _ := (verifier{"us-east-1", "service", suiteKey}).signature(r, sha("")); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func awsTarget(t testing.TB, service, key, token string) *Target {
	t.Helper()
	cfg := &InjectConfig{AWS: &AWSConfig{Region: "us-east-1", Service: service, AccessKeyID: "AKIAIOSFODNN7EXAMPLE"}, Secret: SecretRef{Env: "KEY"},
		Methods: []string{"GET", "PUT", "POST"}, Paths: []string{"/"}}
	if token != "" {
		cfg.AWS.SessionToken = SecretRef{Env: "TOKEN"}
	}
	in, err := newInjection(cfg, func(r SecretRef) (remit.Secret, error) {
		return remit.NewSecret(map[string]string{"KEY": key, "TOKEN": token}[r.Env]), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return &Target{name: "s3", scheme: "http", host: "examplebucket.s3.amazonaws.com", port: "80", opaque: true, inject: in}
}

// signed sends what a tool asked for through the message and the signer, and returns it as a server reads it.
func signed(t *testing.T, target *Target, raw string, at time.Time) (*message, *http.Request, string) {
	t.Helper()
	m, err := read(parse(t, raw), target)
	if err != nil {
		t.Fatal(err)
	}
	out := m.upstream(target)
	if err := target.inject.apply(t.Context(), out, m, at); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := out.Write(&b); err != nil {
		t.Fatal(err)
	}
	got := parse(t, b.String())
	body, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return m, got, string(body)
}

// TestSignatureOfS3Documentation: the signatures of the examples in S3's documentation ("Signature Calculations for the Authorization
// Header"), which are over exactly the headers that we send.
func TestSignatureOfS3Documentation(t *testing.T) {
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	target := awsTarget(t, "s3", docsKey, "")
	for uri, want := range map[string]string{
		"/?lifecycle":           "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
		"/?max-keys=2&prefix=J": "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
	} {
		m, err := read(parse(t, "GET "+uri+" HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\n\r\n"), target)
		if err != nil {
			t.Fatal(err)
		}
		m.header.Del("Accept-Encoding") // the documentation's client sends none
		out := m.upstream(target)
		if err := target.inject.apply(t.Context(), out, m, at); err != nil {
			t.Fatal(err)
		}
		if got := out.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature="+want) {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}

// TestSignedPaths: a server that follows AWS's rule finds the signature right, and decodes the very path that was decided.
func TestSignedPaths(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, service := range []string{"s3", "execute-api"} {
		for _, token := range []string{"", "a session token/with+signs=="} {
			target := awsTarget(t, service, suiteKey, token)
			v := verifier{"us-east-1", service, suiteKey}
			for _, path := range []string{"/", "/plain/a.txt", "/dt=2026-01-01/a", "/a;b", "/a:b@c,d+e", "/(a)!'*$&~", "/100%25", "/a%20b/%C3%BC", "/k%3Dv", "/a/"} {
				for _, raw := range []string{
					"GET " + path + "?list-type=2&prefix=a%2Fb%3D1 HTTP/1.1\r\nHost: x\r\n\r\n",
					"PUT " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 5\r\n\r\na,b,c",
				} {
					m, got, body := signed(t, target, raw, at)
					want, is := v.signature(got, sha(body))
					if want != is {
						t.Errorf("%s %s: sent as %s, signed %s, a server computes %s", service, path, got.RequestURI, is, want)
					}
					if got.URL.Path != m.path || m.args["path"].Text() != m.path {
						t.Errorf("%s: decided %q, a server reads %q", path, m.path, got.URL.Path)
					}
					if got.Header.Get("X-Amz-Security-Token") != token || token != "" && !strings.Contains(got.Header.Get("Authorization"), "x-amz-security-token") {
						t.Errorf("%s: the session token is %q", path, got.Header.Get("X-Amz-Security-Token"))
					}
					if raw[0] == 'P' && body != "a,b,c" {
						t.Errorf("the body is %q", body)
					}
				}
			}
		}
	}
}

// TestUnsignedPathsStay: where nothing is signed, the reserved characters of a path reach the server as they are: some servers tell
// /a;b from /a%3Bb.
func TestUnsignedPathsStay(t *testing.T) {
	for _, path := range []string{"/a;v=1", "/a:b@c,d+e", "/dt=2026-01-01/a"} {
		m, err := read(parse(t, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"), plain())
		if err != nil {
			t.Fatal(err)
		}
		if got := m.upstream(plain()).URL.RequestURI(); got != path {
			t.Errorf("%s is sent as %s", path, got)
		}
	}
}
