// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Digest is "sha256:" and 64 lower-case hex digits. The zero Digest is empty and equals no content.
type Digest string

var digestPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^sha256:[0-9a-f]{64}$`) })

// ParseDigest accepts only the sha256 form; other algorithms are refused, not ignored.
func ParseDigest(s string) (Digest, error) {
	if !digestPattern().MatchString(s) {
		return "", &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%.80q is not a digest", s), Hint: "write sha256: and 64 hex digits"}
	}
	return Digest(s), nil
}

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Hex returns the digest without its algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Image is a container image reference: repository, and digest or tag. Only an image with a digest can be decided on: a
// tag is a name that somebody else may move.
type Image struct {
	Repository string // with registry host, as written: "registry.example/team/foo"
	Tag        string // may stand beside a digest; then it is a remark
	Digest     Digest // empty until resolved
}

// Repository and tag as the OCI distribution specification writes them, with an optional host and port in front.
var imagePattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-zA-Z0-9][a-zA-Z0-9.-]*(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(sha256:[0-9a-f]{64}))?$`)
})

// ParseImage parses REPOSITORY[:TAG][@sha256:HEX], at most 512 bytes.
func ParseImage(s string) (Image, error) {
	m := imagePattern().FindStringSubmatch(s)
	if m == nil || len(s) > 512 {
		return Image{}, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%.80q is not an image reference", s),
			Hint: "write REPOSITORY@sha256:HEX or REPOSITORY:TAG"}
	}
	return Image{Repository: m[1], Tag: m[2], Digest: Digest(m[3])}, nil
}

// String returns REPOSITORY@DIGEST when there is a digest, else REPOSITORY:TAG.
func (i Image) String() string {
	switch {
	case i.Digest != "":
		return i.Repository + "@" + string(i.Digest)
	case i.Tag != "":
		return i.Repository + ":" + i.Tag
	}
	return i.Repository
}
