// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// Authors are who may sign, and how many of them must. The zero value asks for nothing and verifies nothing.
type Authors struct {
	Keys      []*PublicKey
	Threshold int
}

// Configured reports whether anybody must sign.
func (a Authors) Configured() bool { return len(a.Keys) > 0 }

func (a Authors) find(keyID string) *PublicKey {
	i := slices.IndexFunc(a.Keys, func(k *PublicKey) bool { return k.ID() == keyID })
	if i < 0 {
		return nil
	}
	return a.Keys[i]
}

// Verify returns the names of the authors who signed the manifest. Every signature must be of a listed key, valid, and the only one of
// its author: a stranger's or a second one says that list and bundle do not belong together.
func (a Authors) Verify(b *Bundle) ([]string, error) {
	for _, s := range b.signatures {
		//remit:guard S31 TestVerifyRefuses
		if a.find(s.keyID) == nil {
			return nil, refuse(Unknown, fmt.Sprintf("version %d is signed by key %.12q, which is no listed author", b.Version, s.keyID),
				"list the key in remit.yaml if it is an author's, or make the bundle again without that signature")
		}
	}
	return a.Standing(b)
}

// Standing is Verify for what was verified when it became active: a signature of somebody who is listed no more does not
// count, and does not hurt, so that a key can be taken from the list while what it signed is active.
func (a Authors) Standing(b *Bundle) ([]string, error) {
	text := dsse.PAE(PayloadType, b.payload)
	var names []string
	for _, s := range b.signatures {
		key := a.find(s.keyID)
		if key == nil {
			continue
		}
		//remit:guard S31 TestVerifyRefuses
		if !key.Verifies(text, s.value) {
			return nil, refuse(BadSigning, fmt.Sprintf("the signature of %s is not one of version %d's manifest", key.Name, b.Version), remake)
		}
		//remit:guard S31 TestVerifyRefuses
		if slices.Contains(names, key.Name) {
			return nil, refuse(Twice, fmt.Sprintf("%s signed version %d twice", key.Name, b.Version), "let another author sign; one author counts once")
		}
		names = append(names, key.Name)
	}
	//remit:guard S31 TestVerifyRefuses
	if len(names) < a.Threshold {
		return nil, refuse(Missing, fmt.Sprintf("version %d is signed by %d of the %d authors who must sign it", b.Version, len(names), a.Threshold),
			"let more of the listed authors sign with remit policy sign")
	}
	slices.Sort(names)
	return names, nil
}
