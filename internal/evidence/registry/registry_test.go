// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	upstream "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"remit"
	"remit/internal/evidence/registry"
)

// hub is a real registry over loopback.
type hub struct {
	t     *testing.T
	host  string
	asked atomic.Int32
	slow  atomic.Bool
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{t: t}
	inner := upstream.New(upstream.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.slow.Load() {
			<-r.Context().Done()
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	h.host = strings.TrimPrefix(server.URL, "http://")
	return h
}

func newRegistry(t *testing.T, cfg registry.Config) *registry.Registry {
	t.Helper()
	r, err := registry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (h *hub) ref(tag string) name.Tag {
	h.t.Helper()
	ref, err := name.NewTag(h.host + "/company/foo:" + tag)
	if err != nil {
		h.t.Fatal(err)
	}
	return ref
}

func (h *hub) image(suffix string) remit.Image {
	h.t.Helper()
	i, err := remit.ParseImage(h.host + "/company/foo" + suffix)
	if err != nil {
		h.t.Fatal(err)
	}
	return i
}

func (h *hub) push(tag string) v1.Image {
	h.t.Helper()
	img, err := random.Image(64, 1)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := remote.Write(h.ref(tag), img); err != nil {
		h.t.Fatal(err)
	}
	return img
}

func digestOf(t *testing.T, d interface{ Digest() (v1.Hash, error) }) remit.Digest {
	t.Helper()
	h, err := d.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return remit.Digest(h.String())
}

func TestResolve(t *testing.T) {
	h := newHub(t)
	r := newRegistry(t, registry.Config{})
	want := digestOf(t, h.push("v1.2"))
	got, err := r.Resolve(context.Background(), h.image(":v1.2"))
	if err != nil || got.Digest != want || got.Tag != "v1.2" {
		t.Fatalf("Resolve = %v, %v; want %s", got, err, want)
	}
	moved := digestOf(t, h.push("v1.2"))
	if got, err = r.Resolve(context.Background(), h.image(":v1.2")); err != nil || got.Digest != moved {
		t.Errorf("a moved tag = %v, %v; want %s", got, err, moved)
	}
	before := h.asked.Load()
	if got, err = r.Resolve(context.Background(), h.image(":v1.2@"+string(want))); err != nil || got.Digest != want || h.asked.Load() != before {
		t.Errorf("with a digest = %v, %v", got, err)
	}
	if _, err = r.Resolve(context.Background(), h.image(":v9")); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("no such tag: %v", err)
	}
	if _, err = r.Resolve(context.Background(), h.image("")); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("neither tag nor digest: %v", err)
	}
}

func TestPlatforms(t *testing.T) {
	h := newHub(t)
	r := newRegistry(t, registry.Config{})
	index, err := random.Index(64, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	extra, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := random.Index(64, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: inner}, mutate.IndexAddendum{Add: extra, Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}})
	if err := remote.WriteIndex(h.ref("multi"), index); err != nil {
		t.Fatal(err)
	}
	image := h.image("@" + string(digestOf(t, index)))
	got, err := r.Platforms(context.Background(), image)
	if err != nil || len(got) != 4 {
		t.Fatalf("Platforms = %v, %v; want 4", got, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if string(got[i]) != manifest.Manifests[i].Digest.String() {
			t.Errorf("platform %d = %s, want %s", i, got[i], manifest.Manifests[i].Digest)
		}
	}
	before := h.asked.Load()
	if again, err := r.Platforms(context.Background(), image); err != nil || len(again) != 4 || h.asked.Load() != before {
		t.Errorf("asked again: %v, %v", again, err)
	}
	plain := digestOf(t, h.push("plain"))
	if got, err := r.Platforms(context.Background(), h.image("@"+string(plain))); err != nil || len(got) != 0 {
		t.Errorf("plain manifest: %v, %v", got, err)
	}
	if _, err := r.Platforms(context.Background(), h.image("@"+string(remit.DigestOf(nil)))); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("no such digest: %v", err)
	}
	if _, err := r.Platforms(context.Background(), h.image(":plain")); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("tag: %v", err)
	}
}

func TestSlowAndDown(t *testing.T) {
	h := newHub(t)
	h.push("v1")
	r := newRegistry(t, registry.Config{Timeout: 100 * time.Millisecond})
	h.slow.Store(true)
	start := time.Now()
	if _, err := r.Resolve(context.Background(), h.image(":v1")); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("slow: %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	down, err := remit.ParseImage("127.0.0.1:1/company/foo:v1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(context.Background(), down); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("down: %v", err)
	}
}

// dialer sends every plain request to the hub and remembers which hosts were asked over http.
type dialer struct {
	hub   *hub
	plain atomic.Int32
}

func (d *dialer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" {
		d.plain.Add(1)
	}
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "http", d.hub.host
	if r.URL.Path == "/v2/" && d.plain.Load() == 0 {
		return nil, io.ErrUnexpectedEOF // https does not answer, which tempts the library
	}
	return http.DefaultTransport.RoundTrip(r)
}

func TestPlainHTTPOnlyWhereListed(t *testing.T) {
	h := newHub(t)
	h.push("v1")
	for _, host := range []string{"10.1.2.3:5000", "registry.localhost", "registry.example"} {
		image, err := remit.ParseImage(host + "/company/foo:v1")
		if err != nil {
			t.Fatal(err)
		}
		d := &dialer{hub: h}
		if _, err := newRegistry(t, registry.Config{Transport: d}).Resolve(context.Background(), image); remit.CodeOf(err) != remit.CodeUnavailable || d.plain.Load() > 0 {
			t.Errorf("%s: %v, %d plain requests", host, err, d.plain.Load())
		}
		d = &dialer{hub: h}
		if _, err := newRegistry(t, registry.Config{Transport: d, Insecure: []string{host}}).Resolve(context.Background(), image); err != nil {
			t.Errorf("%s, listed: %v", host, err)
		}
	}
}
