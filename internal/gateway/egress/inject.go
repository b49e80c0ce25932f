// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"

	"remit"
)

// injection is the credential of a target, and for which of its requests it is.
type injection struct {
	header, prefix string // canonical; Authorization for basic and aws
	basic, query   string
	aws            *AWSConfig
	token          remit.Secret // AWS session token
	secret         remit.Secret
	methods, paths []string
	forms          forms
}

// A shorter secret would be found where it is not; a longer one is none that goes into a header.
const leastSecret, mostSecret = 8, 8 << 10

func newInjection(cfg *InjectConfig, secret func(SecretRef) (remit.Secret, error)) (*injection, error) {
	in := &injection{header: textproto.CanonicalMIMEHeaderKey(cfg.Header), prefix: cfg.Prefix, basic: cfg.Basic, query: cfg.Query, aws: cfg.AWS}
	if cfg.Header != "" && (!token(cfg.Header) || connectional[in.header] && in.header != "Authorization" && in.header != "Cookie" || overriding[in.header]) {
		return nil, invalid("inject: %.60q is no header that a credential stands in", cfg.Header)
	}
	if cfg.Prefix != "" && (cfg.Header == "" || !headerText(cfg.Prefix)) {
		return nil, invalid("inject: prefix stands before the secret in header")
	}
	if cfg.Basic != "" && (!headerText(cfg.Basic) || strings.Contains(cfg.Basic, ":")) {
		return nil, invalid("inject: basic is a user name without a colon")
	}
	if cfg.Basic != "" || cfg.AWS != nil {
		in.header = "Authorization"
	}
	if err := in.scope(cfg); err != nil {
		return nil, err
	}
	var err error
	if in.secret, err = resolveSecret(cfg.Secret, secret); err != nil {
		return nil, err
	}
	all := []string{in.secret.Reveal()}
	if a := cfg.AWS; a != nil {
		if a.Region == "" || a.Service == "" || a.AccessKeyID == "" {
			return nil, invalid("inject: aws needs region, service and access_key_id")
		}
		if !a.SessionToken.isZero() {
			if in.token, err = resolveSecret(a.SessionToken, secret); err != nil {
				return nil, err
			}
			all = append(all, in.token.Reveal())
		}
	}
	if in.basic != "" {
		all = append(all, in.basic+":"+in.secret.Reveal())
	}
	in.forms = formsOf(all...)
	return in, nil
}

// scope reads for which methods and paths the credential is (S28).
func (in *injection) scope(cfg *InjectConfig) error {
	if len(cfg.Methods) == 0 || len(cfg.Paths) == 0 {
		return invalid("inject: methods and paths say for which requests the credential is; both are required")
	}
	for _, m := range cfg.Methods {
		if _, ok := methods[m]; !ok {
			return invalid("inject: %.20q is no method: GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS", m)
		}
	}
	for _, p := range cfg.Paths {
		got, err := canonicalPath(&url.URL{Path: p})
		if err != nil || got != p || strings.Contains(p, "%") {
			return invalid("inject: %.80q is no plain absolute path", p)
		}
	}
	in.methods, in.paths = slices.Clone(cfg.Methods), slices.Clone(cfg.Paths)
	return nil
}

func resolveSecret(ref SecretRef, secret func(SecretRef) (remit.Secret, error)) (remit.Secret, error) {
	s, err := secret(ref)
	if err != nil {
		return s, err
	}
	if n := len(s.Reveal()); n < leastSecret || n > mostSecret || !headerText(s.Reveal()) {
		return s, invalid("inject: a secret has from %d to %d printable characters: a shorter one cannot be recognised in an answer", leastSecret, mostSecret)
	}
	return s, nil
}

func headerText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f })
}

// fits reports whether m is one of the requests that the credential is for. The origin is the target's already.
func (in *injection) fits(m *message) bool {
	//remit:guard S28 TestInjectionScope
	if in == nil || !slices.Contains(in.methods, m.method) {
		return false
	}
	return slices.ContainsFunc(in.paths, func(p string) bool {
		return m.path == p || strings.HasPrefix(m.path, strings.TrimSuffix(p, "/")+"/")
	})
}

// apply puts the credential into r. It is the one place where it is revealed on the way out.
func (in *injection) apply(ctx context.Context, r *http.Request, m *message, now time.Time) error {
	switch {
	case in.aws != nil:
		return in.sign(ctx, r, m, now)
	case in.query != "":
		r.URL.RawQuery = strings.TrimPrefix(r.URL.RawQuery+"&"+escape(in.query)+"="+escape(in.secret.Reveal()), "&")
	case in.basic != "":
		r.SetBasicAuth(in.basic, in.secret.Reveal())
	default:
		r.Header.Set(in.header, in.prefix+in.secret.Reveal())
	}
	return nil
}

// maxSigned bounds a body that has to be read to be signed.
const maxSigned = 8 << 20

// sign is AWS Signature Version 4, over the body, too. The path is sent as AWS's clients send it, with every byte encoded that is not
// unreserved: that is what AWS computes the signature over, for S3 as it is and for others with the percent signs encoded once more. Go's
// own encoding leaves some as they are (= : @ , + ; $ &), which AWS's rule does not. Decoded, both are the path that was decided.
func (in *injection) sign(ctx context.Context, r *http.Request, m *message, now time.Time) error {
	body := m.body
	if m.stream != nil {
		var err error
		if body, err = io.ReadAll(io.LimitReader(r.Body, maxSigned+1)); err != nil {
			return err
		}
		if len(body) > maxSigned {
			return errBodyTooLarge
		}
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(string(body))), int64(len(body))
	}
	if strings.Contains(strings.ToLower(r.Header.Get("Content-Encoding")), "aws-chunked") {
		return errors.New("a body that was signed in pieces cannot be signed again")
	}
	sum := sha256.Sum256(body)
	digest := hex.EncodeToString(sum[:])
	r.Header.Set("X-Amz-Content-Sha256", digest)
	r.URL.RawPath = httpbinding.EscapePath(m.path, false)
	creds := aws.Credentials{AccessKeyID: in.aws.AccessKeyID, SecretAccessKey: in.secret.Reveal(), SessionToken: in.token.Reveal()}
	return v4.NewSigner().SignHTTP(ctx, creds, r, digest, in.aws.Service, in.aws.Region, now, func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = in.aws.Service == "s3"
	})
}

// formsOf lists how the secrets would look in an answer that repeats them: as they are, percent-encoded, escaped in JSON or HTML, in
// hexadecimal, and in base64 at each of the three places that they can have in it.
func formsOf(secrets ...string) forms {
	seen := map[string]bool{}
	var out forms
	add := func(list ...string) {
		for _, s := range list {
			if len(s) >= leastSecret && !seen[s] {
				seen[s] = true
				out = append(out, newForm(s))
			}
		}
	}
	for _, s := range secrets {
		q, p := url.QueryEscape(s), url.PathEscape(s)
		add(s, q, p, escape(s), lowerEscapes(q), lowerEscapes(p), lowerEscapes(escape(s)), everyByte(s, "0123456789ABCDEF"), everyByte(s, "0123456789abcdef"))
		j := string(remit.AppendJSONString(nil, s))
		j = j[1 : len(j)-1]
		add(j, strings.ReplaceAll(j, "/", `\/`), strings.NewReplacer("<", `\u003c`, ">", `\u003e`, "&", `\u0026`).Replace(j))
		add(strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(s),
			strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;").Replace(s))
		add(hex.EncodeToString([]byte(s)), strings.ToUpper(hex.EncodeToString([]byte(s))))
		for k := range 3 {
			padded := append(make([]byte, k), s...)
			first, last := [...]int{0, 2, 3}[k], len(padded)*8/6
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				b := enc.EncodeToString(padded)[first:last]
				add(b, url.QueryEscape(b))
			}
		}
	}
	return out
}

// lowerEscapes writes the digits of percent-encodings in lower case.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], strings.ToLower(string(b[i+1:i+3])))
		}
	}
	return string(b)
}

// everyByte percent-encodes all of s.
func everyByte(s, digits string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteString("%" + digits[s[i]>>4:][:1] + digits[s[i]&15:][:1])
	}
	return b.String()
}
