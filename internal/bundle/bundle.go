// SPDX-License-Identifier: Apache-2.0

// Package bundle makes a directory of files something that authors sign (S31): a canonical manifest with a version, the
// digest of every file and the digest of the manifest before it, in a DSSE envelope that carries the signatures. It says what
// is wrong with a bundle, each fault with its own Refusal and next step. It reads no directory, remembers nothing and starts
// no goroutine: what was active before is handed in.
package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"remit"
)

// File is the envelope's name, in the directory that it covers.
const File = "bundle.json"

// PayloadType is the DSSE payload type of a manifest.
const PayloadType = "application/vnd.remit.bundle.v1+json"

// What a bundle can be of. One is never taken for the other.
const (
	OfConfiguration = "configuration"
	OfCeiling       = "ceiling"
)

const (
	// MaxEnvelope is the greatest length of an envelope, in bytes.
	MaxEnvelope   = 1 << 20
	maxSignatures = 32
	maxVersion    = 1 << 53 // exact in every reader of JSON
)

// Manifest is what is signed. Its canonical form is its JSON with the members in this order, the files sorted, without spaces.
type Manifest struct {
	Of       string                  `json:"of"`
	For      string                  `json:"for"`      // the trust domain of the installation
	Version  uint64                  `json:"version"`  // from 1; each is one more than the one before
	Previous remit.Digest            `json:"previous"` // of the manifest before; empty: this is the first
	Files    map[string]remit.Digest `json:"files"`    // by path relative to the directory
}

// Bundle is a manifest with its signatures.
type Bundle struct {
	Manifest
	payload    []byte
	signatures []signature
}

type signature struct {
	keyID string
	value []byte
}

// New makes the unsigned bundle of files that follows before; nil: it is the first.
func New(of, trustDomain string, files map[string][]byte, before *Bundle) (*Bundle, error) {
	b := &Bundle{Manifest: Manifest{Of: of, For: trustDomain, Version: 1, Files: digests(files)}}
	if before != nil {
		b.Version, b.Previous = before.Version+1, before.Digest()
	}
	return b.seal()
}

// Remade is the unsigned bundle of files in the place of b, which was never active: the same version after the same one.
func (b *Bundle) Remade(files map[string][]byte) (*Bundle, error) {
	m := b.Manifest
	m.Files = digests(files)
	return (&Bundle{Manifest: m}).seal()
}

func (b *Bundle) seal() (*Bundle, error) {
	var err error
	b.payload, err = json.Marshal(b.Manifest)
	return b, err
}

func digests(files map[string][]byte) map[string]remit.Digest {
	out := make(map[string]remit.Digest, len(files))
	for name, content := range files {
		out[name] = remit.DigestOf(content)
	}
	return out
}

// Parse reads an envelope; it verifies no signature. The manifest must be in its canonical form, so that a file has one
// reading only.
func Parse(b []byte) (*Bundle, error) {
	if len(b) > MaxEnvelope {
		return nil, refuse(Malformed, fmt.Sprintf("%s has more than %d bytes", File, MaxEnvelope), remake)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, refuse(Malformed, fmt.Sprintf("%s is no DSSE envelope: %v", File, err), remake)
	}
	if e.PayloadType != PayloadType {
		return nil, refuse(Malformed, fmt.Sprintf("%s has the payload type %.60q, not %s", File, e.PayloadType, PayloadType), remake)
	}
	if len(e.Signatures) > maxSignatures {
		return nil, refuse(Malformed, fmt.Sprintf("%s has more than %d signatures", File, maxSignatures), remake)
	}
	payload, err := e.DecodeB64Payload()
	if err != nil {
		return nil, refuse(Malformed, File+": the payload is not base64", remake)
	}
	out := &Bundle{payload: payload}
	for _, s := range e.Signatures {
		raw, err := (&dsse.Envelope{Payload: s.Sig}).DecodeB64Payload()
		if err != nil {
			return nil, refuse(Malformed, File+": a signature is not base64", remake)
		}
		out.signatures = append(out.signatures, signature{s.KeyID, raw})
	}
	return out, out.readManifest()
}

func (b *Bundle) readManifest() error {
	dec := json.NewDecoder(bytes.NewReader(b.payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b.Manifest); err != nil {
		return refuse(Malformed, fmt.Sprintf("%s: the manifest: %v", File, err), remake)
	}
	canonical, err := json.Marshal(b.Manifest)
	//remit:guard S31 TestParseRefuses
	if err != nil || !bytes.Equal(canonical, b.payload) {
		return refuse(Malformed, File+": the manifest is not in its canonical form", remake)
	}
	//remit:guard S31 TestParseRefuses
	if b.Version == 0 || b.Version > maxVersion {
		return refuse(Malformed, fmt.Sprintf("%s: the version is %d, not 1 to %d", File, b.Version, uint64(maxVersion)), remake)
	}
	return nil
}

// Digest is that of the manifest.
func (b *Bundle) Digest() remit.Digest { return remit.DigestOf(b.payload) }

// Bytes returns the envelope.
func (b *Bundle) Bytes() []byte {
	e := dsse.Envelope{PayloadType: PayloadType, Payload: encode(b.payload), Signatures: []dsse.Signature{}}
	for _, s := range b.signatures {
		e.Signatures = append(e.Signatures, dsse.Signature{KeyID: s.keyID, Sig: encode(s.value)})
	}
	out, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		panic(err) // strings and slices always encode
	}
	return append(out, '\n')
}

// Sign adds a signature; a key signs once.
func (b *Bundle) Sign(k *PrivateKey) error {
	if slices.ContainsFunc(b.signatures, func(s signature) bool { return s.keyID == k.ID() }) {
		return refuse(Twice, fmt.Sprintf("key %.12s… has signed version %d already", k.ID(), b.Version), "let another author sign; one author counts once")
	}
	value, err := k.sign(dsse.PAE(PayloadType, b.payload))
	if err != nil {
		return fmt.Errorf("sign version %d: %w", b.Version, err)
	}
	b.signatures = append(b.signatures, signature{k.ID(), value})
	return nil
}

// Covers reports the first difference between the files and what was signed.
func (b *Bundle) Covers(files map[string][]byte) error {
	const next = "restore the file, or make the next version with remit policy bundle and have it signed"
	for _, name := range slices.Sorted(maps.Keys(files)) {
		//remit:guard S31 TestCovers
		if b.Files[name] != remit.DigestOf(files[name]) { // a file that the bundle does not have has no digest there
			return refuse(Changed, fmt.Sprintf("%s is not as version %d of the bundle has it: it was added or changed after signing", name, b.Version), next)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.Files)) {
		//remit:guard S31 TestCovers
		if _, ok := files[name]; !ok {
			return refuse(Changed, fmt.Sprintf("%s of version %d of the bundle is not there: it was removed after signing", name, b.Version), next)
		}
	}
	return nil
}

// IsFor refuses a bundle that is of something else or for another installation.
func (b *Bundle) IsFor(of, trustDomain string) error {
	//remit:guard S31 TestOfAnother
	if b.Of != of {
		return refuse(OfAnother, fmt.Sprintf("the bundle is of a %.40s, not of a %s", b.Of, of), remake)
	}
	//remit:guard S31 TestOfAnother
	if b.For != trustDomain {
		return refuse(OfAnother, fmt.Sprintf("the bundle is for %.80s, not for %s", b.For, trustDomain),
			"make one with remit policy bundle --for "+trustDomain)
	}
	return nil
}

// Active is what a bundle must follow: the highest version that was ever active, and the digest of its manifest. The zero
// value is followed by anything.
type Active struct {
	Version  uint64
	Manifest remit.Digest
}

// Follows refuses a bundle that is not active already and not the one after.
func (b *Bundle) Follows(a Active) error {
	if a.Version == 0 || b.Version == a.Version && b.Digest() == a.Manifest {
		return nil
	}
	//remit:guard S31 TestFollows
	if b.Version < a.Version {
		return refuse(Replayed, fmt.Sprintf("version %d is older than version %d, which was active", b.Version, a.Version),
			"to go back, restore the older files and make a new version of them with remit policy bundle")
	}
	//remit:guard S31 TestFollows
	if b.Version == a.Version {
		return refuse(Taken, fmt.Sprintf("version %d was active with other content", b.Version), "make the next version with remit policy bundle and have it signed")
	}
	//remit:guard S31 TestFollows
	if b.Previous != a.Manifest || b.Version != a.Version+1 { // a great leap would leave no number for the next
		return refuse(NotNext, fmt.Sprintf("version %d was not made from version %d, which is active", b.Version, a.Version),
			"apply the versions in order, or make this one again on top of the active one")
	}
	return nil
}

// Signers names the ids of the keys that signed, unverified.
func (b *Bundle) Signers() []string {
	var out []string
	for _, s := range b.signatures {
		out = append(out, s.keyID)
	}
	return out
}
