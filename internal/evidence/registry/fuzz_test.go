// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"remit"
	"remit/internal/evidence/registry"
)

// reply is a registry that answers every question with the same bytes.
type reply struct {
	kind string
	body []byte
}

func (r reply) RoundTrip(q *http.Request) (*http.Response, error) {
	h := http.Header{"Content-Type": {r.kind}, "Docker-Content-Digest": {string(remit.DigestOf(r.body))}}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Request: q,
		ContentLength: int64(len(r.body)), Body: io.NopCloser(bytes.NewReader(r.body))}, nil
}

// FuzzReplies: whatever a registry answers is an error, or a bounded list of digests; a tag resolves to a digest or not at all.
func FuzzReplies(f *testing.F) {
	const index = "application/vnd.oci.image.index.v1+json"
	digest := string(remit.DigestOf([]byte("x")))
	one := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"` + digest + `","platform":{"os":"linux","architecture":"amd64"}}`
	f.Add(index, []byte(`{"schemaVersion":2,"mediaType":"`+index+`","manifests":[`+one+`]}`))
	f.Add(index, []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+index+`","size":1,"digest":"`+digest+`"}]}`))
	f.Add(index, []byte(`{"schemaVersion":2,"manifests":[`+strings.Repeat(one+",", 200)+one+`]}`))
	f.Add("application/vnd.oci.image.manifest.v1+json", []byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
	f.Add("text/html", []byte(`<html>`))
	f.Add("application/vnd.docker.distribution.manifest.v1+json", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r, err := registry.New(registry.Config{Transport: reply{kind, body}})
		if err != nil {
			t.Fatal(err)
		}
		image := remit.Image{Repository: "registry.example/company/foo", Digest: remit.DigestOf(body)}
		if found, err := r.Platforms(context.Background(), image); err == nil {
			for _, d := range found {
				if _, err := remit.ParseDigest(string(d)); err != nil || len(found) > 128 {
					t.Errorf("%q: %d platforms, %s", body, len(found), d)
				}
			}
		}
		got, err := r.Resolve(context.Background(), remit.Image{Repository: "registry.example/company/foo", Tag: "v1"})
		if _, bad := remit.ParseDigest(string(got.Digest)); err == nil && bad != nil {
			t.Errorf("the tag resolves to %q", got.Digest)
		}
	})
}
