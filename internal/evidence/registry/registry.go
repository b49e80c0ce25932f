// SPDX-License-Identifier: Apache-2.0

// Package registry asks OCI registries two questions: to which digest a tag points now, and which platform manifests an image
// index holds. It is no evidence by itself: what it says of a tag holds at the time of asking, and what it says of a digest
// is checked against the digest. It pulls no layer and starts no goroutine of its own.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"remit"
)

// Config is how registries are reached.
type Config struct {
	// Timeout of one question, with all its requests. 0: 5 s; at most 30 s.
	Timeout time.Duration `yaml:"timeout"`
	// Insecure lists the registry hosts, HOST or HOST:PORT, that are asked over plain http. Loopback hosts are without it.
	Insecure []string `yaml:"insecure"`
	// Keychain lets the host's docker configuration and its credential helpers log in. Off by default: pulls are anonymous.
	Keychain bool `yaml:"keychain"`

	// Transport replaces the HTTP transport, such as one with other roots. nil: a clone of http.DefaultTransport.
	Transport http.RoundTripper `yaml:"-"`
}

const (
	defaultTimeout = 5 * time.Second
	maxTimeout     = 30 * time.Second
	maxPlatforms   = 128
	maxCached      = 4096
)

// Registry answers. It is safe for concurrent use.
type Registry struct {
	cfg Config

	mu     sync.Mutex // guards cached
	cached map[remit.Digest][]remit.Digest
}

// New checks the configuration. It does not connect.
func New(cfg Config) (*Registry, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Timeout < 0 || cfg.Timeout > maxTimeout {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("registry timeout %s is not between 0 and %s", cfg.Timeout, maxTimeout)}
	}
	if cfg.Transport == nil {
		t, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			return nil, errors.New("registry: http.DefaultTransport was replaced")
		}
		t = t.Clone()
		t.MaxResponseHeaderBytes = 64 << 10
		cfg.Transport = t
	}
	r := &Registry{cfg: cfg, cached: map[remit.Digest][]remit.Digest{}}
	r.cfg.Transport = strict{plain: r.plain, next: cfg.Transport}
	return r, nil
}

// Resolve returns the image with the digest to which its tag points now. An image that has a digest is returned as it is,
// without asking. Errors are of CodeInvalid, CodeNotFound or CodeUnavailable.
func (r *Registry) Resolve(ctx context.Context, image remit.Image) (remit.Image, error) {
	if image.Digest != "" {
		return image, nil
	}
	if image.Tag == "" {
		return remit.Image{}, &remit.Error{Code: remit.CodeInvalid, Msg: image.String() + " has neither tag nor digest",
			Hint: "write REPOSITORY:TAG; latest is not assumed"}
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	ref, err := name.NewTag(image.Repository+":"+image.Tag, r.options(image)...)
	if err != nil {
		return remit.Image{}, malformed(image, err)
	}
	desc, err := remote.Head(ref, r.remote(ctx)...)
	if err != nil {
		return remit.Image{}, unreached(image, err)
	}
	if image.Digest, err = digest(desc.Digest); err != nil {
		return remit.Image{}, unreached(image, err)
	}
	return image, nil
}

// Platforms returns the digests of all manifests that an index lists, nested indexes included, and none for an image that is
// a plain manifest. The bytes are checked against image.Digest, so the answer never changes and is remembered.
func (r *Registry) Platforms(ctx context.Context, image remit.Image) ([]remit.Digest, error) {
	if image.Digest == "" {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: image.String() + " has no digest", Hint: "resolve the tag first"}
	}
	r.mu.Lock()
	known, ok := r.cached[image.Digest]
	r.mu.Unlock()
	if ok {
		return slices.Clone(known), nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	found, err := r.platforms(ctx, image)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.cached) >= maxCached {
		clear(r.cached)
	}
	r.cached[image.Digest] = found
	return slices.Clone(found), nil
}

func (r *Registry) platforms(ctx context.Context, image remit.Image) ([]remit.Digest, error) {
	ref, err := name.NewDigest(image.Repository+"@"+string(image.Digest), r.options(image)...)
	if err != nil {
		return nil, malformed(image, err)
	}
	desc, err := remote.Get(ref, r.remote(ctx)...) // checks the bytes against the digest
	if err != nil {
		return nil, unreached(image, err)
	}
	if !desc.MediaType.IsIndex() {
		return nil, nil
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, unreached(image, err)
	}
	return children(image, index, nil, 0)
}

// children adds the manifests of an index to found.
func children(image remit.Image, index v1.ImageIndex, found []remit.Digest, depth int) ([]remit.Digest, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, unreached(image, err)
	}
	for _, m := range manifest.Manifests {
		if depth > 2 || len(found) >= maxPlatforms {
			return nil, &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("%s holds more than %d platforms or deeper than 3 indexes", image, maxPlatforms)}
		}
		if m.MediaType.IsIndex() {
			inner, err := index.ImageIndex(m.Digest)
			if err != nil {
				return nil, unreached(image, err)
			}
			if found, err = children(image, inner, found, depth+1); err != nil {
				return nil, err
			}
			continue
		}
		if m.Annotations["vnd.docker.reference.type"] == "attestation-manifest" && m.Platform != nil && m.Platform.OS == "unknown" &&
			m.Platform.Architecture == "unknown" {
			continue // BuildKit keeps its attestations beside the platforms; no runtime picks platform unknown/unknown
		}
		d, err := digest(m.Digest)
		if err != nil {
			return nil, unreached(image, err)
		}
		if !slices.Contains(found, d) {
			found = append(found, d)
		}
	}
	return found, nil
}

func digest(h v1.Hash) (remit.Digest, error) { return remit.ParseDigest(h.String()) }

func (r *Registry) options(image remit.Image) []name.Option {
	host, _, _ := strings.Cut(image.Repository, "/")
	if r.plain(host) {
		return []name.Option{name.Insecure}
	}
	return nil
}

// plain reports whether host may be asked over plain http.
func (r *Registry) plain(host string) bool {
	return slices.Contains(r.cfg.Insecure, host) || loopback(host)
}

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

func (r *Registry) remote(ctx context.Context) []remote.Option {
	keys := authn.NewMultiKeychain()
	if r.cfg.Keychain {
		keys = authn.DefaultKeychain
	}
	return []remote.Option{remote.WithContext(ctx), remote.WithTransport(r.cfg.Transport), remote.WithAuthFromKeychain(keys),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithUserAgent("remit")}
}

func malformed(image remit.Image, err error) *remit.Error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: image.String() + " is not a reference that a registry takes", Cause: err}
}
