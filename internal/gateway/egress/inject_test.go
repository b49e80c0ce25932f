// SPDX-License-Identifier: Apache-2.0

package egress_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"html"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"remit/internal/gateway/egress"
)

// TestInjection: each kind of credential arrives, what the tool sent in its place does not, and nothing of it is decided on or recorded.
func TestInjection(t *testing.T) {
	sec := egress.SecretRef{Env: secret}
	for name, c := range map[string]struct {
		inject egress.InjectConfig
		path   string
		want   func(seenRequest) bool
	}{
		"header": {egress.InjectConfig{Header: "x-api-key", Prefix: "k ", Secret: sec}, "/v1/a", func(r seenRequest) bool {
			return len(r.header["X-Api-Key"]) == 1 && r.header.Get("X-Api-Key") == "k "+secret
		}},
		"basic": {egress.InjectConfig{Basic: "me", Secret: sec}, "/v1/a", func(r seenRequest) bool {
			return r.header.Get("Authorization") == "Basic "+base64.StdEncoding.EncodeToString([]byte("me:"+secret))
		}},
		"query": {egress.InjectConfig{Query: "key", Secret: sec}, "/v1/a?key=mine&b=1&key=other", func(r seenRequest) bool {
			return r.uri == "/v1/a?b=1&key="+url.QueryEscape(secret)
		}},
		"aws": {egress.InjectConfig{AWS: &egress.AWSConfig{Region: "eu-central-1", Service: "dynamodb", AccessKeyID: "AKIDEXAMPLE"}, Secret: sec}, "/v1/a%20b;c?z=1&a=x%20y&a=", func(r seenRequest) bool {
			return signedAsSent(t, r)
		}},
	} {
		up := newUpstream(t, true, nil)
		w := newWorld(t, up.target(t, func(cfg *egress.TargetConfig) {
			c.inject.Methods, c.inject.Paths = []string{"GET"}, []string{"/v1"}
			cfg.Inject = &c.inject
		}))
		resp, body := w.do("GET", up.url()+c.path, "", "", "Authorization", "forged", "X-Api-Key", "forged", "X-Amz-Date", "forged")
		if resp == nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v %s", name, resp, body)
		}
		if got := up.requests()[0]; !c.want(got) {
			t.Errorf("%s: sent %+v", name, got)
		}
		if s := string(w.last().Args.AppendJSON(nil)); strings.Contains(s, secret) || strings.Contains(s, "mine") {
			t.Errorf("%s: decided on %s", name, s)
		}
		if a := w.recorded(); len(a) != 1 || a[0].Detail["credential"] != "injected" {
			t.Errorf("%s: recorded %+v", name, a)
		}
	}
}

// signedAsSent signs what a server got once more, with the headers that it says are signed, and compares.
func signedAsSent(t *testing.T, r seenRequest) bool {
	t.Helper()
	again, err := http.NewRequest(r.method, "https://"+r.host+r.uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(r.header.Get("Authorization"), "SignedHeaders=")
	list, _, _ = strings.Cut(list, ",")
	for h := range strings.SplitSeq(list, ";") {
		if v := r.header.Get(h); v != "" && h != "x-amz-date" {
			again.Header.Set(h, v)
		}
	}
	at, err := time.Parse("20060102T150405Z", r.header.Get("X-Amz-Date"))
	if err != nil {
		t.Error(err)
		return false
	}
	err = v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: secret}, again,
		r.header.Get("X-Amz-Content-Sha256"), "dynamodb", "eu-central-1", at)
	return err == nil && again.Header.Get("Authorization") == r.header.Get("Authorization")
}

// TestInjectionScope: the credential is for its methods and paths, at the borders of segments, and for no other request of the target.
func TestInjectionScope(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, withHeader))
	for _, c := range []struct {
		method, path string
		want         bool
	}{{"GET", "/v1", true}, {"GET", "/v1/", true}, {"POST", "/v1/a/b", true}, {"GET", "/v1x", false}, {"GET", "/", false}, {"PUT", "/v1/a", false},
		{"GET", "/V1/a", false}, {"GET", "/x/v1", false}} {
		if resp, body := w.do(c.method, up.url()+c.path, "", ""); resp == nil || resp.StatusCode != 200 {
			t.Fatalf("%s %s: %v %s", c.method, c.path, resp, body)
		}
		all := up.requests()
		if got := all[len(all)-1].header.Get("Authorization") == "Bearer "+secret; got != c.want {
			t.Errorf("%s %s: injected %v", c.method, c.path, got)
		}
	}
}

// TestSecretIsCut: an answer that repeats the credential does not reach the tool, in whatever usual form, wherever it stands, and
// however it is cut into pieces.
func TestSecretIsCut(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	forms := map[string]string{"raw": secret, "base64": b64([]byte(secret)), "base64 at 1": b64([]byte("a" + secret + "bc")), "base64 at 2": b64([]byte("ab" + secret)),
		"base64 url": base64.RawURLEncoding.EncodeToString([]byte("Bearer " + secret)), "query": url.QueryEscape(secret), "path": url.PathEscape(secret),
		"query lower": strings.ToLower(url.QueryEscape(strings.ToLower("x"))) + strings.NewReplacer("%2F", "%2f", "%2B", "%2b", "%26", "%26").Replace(url.QueryEscape(secret)),
		"html":        html.EscapeString(secret), "json": strings.ReplaceAll(secret, "/", `\/`), "json go": strings.ReplaceAll(secret, "&", `\u0026`),
		"hex": hex.EncodeToString([]byte(secret)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	var answer func(w http.ResponseWriter)
	up := newUpstream(t, false, func(w http.ResponseWriter, _ *http.Request) { answer(w) })
	w := newWorld(t, up.target(t, withHeader))
	for name, form := range forms {
		for place, do := range map[string]func(w http.ResponseWriter){
			"header": func(w http.ResponseWriter) { w.Header().Set("X-Echo", "x "+form) },
			"body":   func(w http.ResponseWriter) { _, _ = io.WriteString(w, "you sent "+form+" to us") },
			"pieces": func(w http.ResponseWriter) {
				_, _ = io.WriteString(w, strings.Repeat("-", 40000))
				for i := range len(form) {
					_, _ = w.Write([]byte{form[i]})
					w.(http.Flusher).Flush()
				}
			},
		} {
			answer = do
			resp, body := w.do("GET", up.url()+"/v1/echo", "", "")
			shown := body
			if resp != nil {
				shown += strings.Join(resp.Header["X-Echo"], "")
			}
			if strings.Contains(shown, form) || strings.Contains(shown, secret[4:]) {
				t.Errorf("%s in %s: the tool got %.200q", name, place, shown)
			}
			if place != "pieces" && (resp == nil || resp.StatusCode != 502 || !strings.Contains(body, "credential")) {
				t.Errorf("%s in %s: %v %s", name, place, resp, body)
			}
			if place == "pieces" && !strings.Contains(body, " then ") {
				t.Errorf("%s in pieces: the answer ended well: %.80q", name, body)
			}
		}
	}
	answer = func(w http.ResponseWriter) { _, _ = io.WriteString(w, secret[:len(secret)-1]) }
	if resp, body := w.do("GET", up.url()+"/v1/echo", "", ""); resp.StatusCode != 200 || body != secret[:len(secret)-1] {
		t.Errorf("what is not the secret: %v %q", resp, body)
	}
	for _, a := range w.recorded() {
		if strings.Contains(a.Detail["error"], secret) {
			t.Errorf("recorded %+v", a)
		}
	}
}

// TestNoPartsOfASecret: where a credential is injected, nobody asks for a part of an answer or for an encoded one.
func TestNoPartsOfASecret(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, withHeader))
	w.do("GET", up.url()+"/v1", "", "", "Range", "bytes=0-3", "If-Range", "x", "Accept-Encoding", "gzip")
	h := up.requests()[0].header
	if h.Get("Range") != "" || h.Get("If-Range") != "" || h.Get("Accept-Encoding") != "identity" {
		t.Errorf("sent %v", h)
	}
}

// TestEncodedAnswer: an answer that cannot be searched is not passed on.
func TestEncodedAnswer(t *testing.T) {
	up := newUpstream(t, false, func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, r.Header.Get("Authorization"))
		_ = z.Close()
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(b.Bytes())
	})
	w := newWorld(t, up.target(t, withHeader))
	if resp, body := w.do("GET", up.url()+"/v1", "", "", "Accept-Encoding", "gzip"); resp == nil || resp.StatusCode != 502 {
		t.Errorf("%v %s", resp, body)
	}
}

// TestEventsAreNotHeldBack: the search for the secret delays no event of a stream.
func TestEventsAreNotHeldBack(t *testing.T) {
	next := make(chan struct{})
	up := newUpstream(t, false, func(w http.ResponseWriter, _ *http.Request) {
		for range 3 {
			_, _ = io.WriteString(w, "data: s3c\n\n")
			w.(http.Flusher).Flush()
			<-next
		}
	})
	w := newWorld(t, up.target(t, withHeader))
	resp, err := w.client().Get(up.url() + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	for range 3 {
		b := make([]byte, 11)
		got := make(chan error, 1)
		go func() { _, err := io.ReadFull(resp.Body, b); got <- err }()
		select {
		case err := <-got:
			if err != nil || string(b) != "data: s3c\n\n" {
				t.Fatalf("%q %v", b, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("an event is held back")
		}
		next <- struct{}{}
	}
}

// TestRedirectIsAnAnswer: the proxy follows none; the tool's next request is decided like any other.
func TestRedirectIsAnAnswer(t *testing.T) {
	up := newUpstream(t, false, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusFound)
	})
	w := newWorld(t, up.target(t, withHeader))
	resp, _ := w.do("GET", up.url()+"/v1", "", "")
	if resp.StatusCode != 302 || len(up.requests()) != 1 || w.asks() != 1 {
		t.Errorf("%v", resp)
	}
	if resp, _ := w.do("GET", resp.Header.Get("Location"), "", ""); resp.StatusCode != 403 || w.asks() != 2 {
		t.Errorf("%v", resp)
	}
}
