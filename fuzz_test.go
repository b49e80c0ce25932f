// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"strings"
	"testing"

	"remit"
)

// FuzzNames: what is accepted as a name, an id, a digest or an image is one line without white space, and reads back as itself.
func FuzzNames(f *testing.F) {
	digest := string(remit.DigestOf(nil))
	for _, s := range []string{"agent/deploy", "operator/ann", "tool/a/b", "agent/../x", string(remit.NewRunID()), "run-", digest, "sha256:zz",
		"registry.example:5000/company/foo:v1@" + digest, "foo@" + digest, "foo:latest", "a//b@" + digest, "FOO@" + digest, "agent/\u202e", "critical"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		one := func(what, got string, err error) {
			if err == nil && (got != s || got == "" || strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r > '~' })) {
				t.Errorf("%q is accepted as the %s %q", s, what, got)
			}
		}
		name, err := remit.ParseName(s)
		one("name", string(name), err)
		d, err := remit.ParseDigest(s)
		one("digest", string(d), err)
		run, err := remit.ParseRunID(s)
		one("run", string(run), err)
		grant, err := remit.ParseGrantID(s)
		one("grant", string(grant), err)
		if len(s) > 32 && (run == remit.RunID(s) && err == nil) {
			t.Errorf("%q is no id", s)
		}
		image, err := remit.ParseImage(s)
		if err != nil {
			return
		}
		again, err := remit.ParseImage(image.String())
		if err != nil || again.Repository != image.Repository || again.Digest != image.Digest {
			t.Errorf("%q is the image %q, which is %+v, %v", s, image, again, err)
		}
		if strings.ContainsFunc(image.String(), func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q is an image", s)
		}
	})
}
