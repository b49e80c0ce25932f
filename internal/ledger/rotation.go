// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"remit"
	"remit/internal/durable"
)

// A rotation replaces the ledger's key. It is a signed note among the log's files, rotation/1, rotation/2 …:
//
//	remit ledger key rotation v1
//	ORIGIN
//	SIZE
//	OLD PUBLIC KEY
//	NEW PUBLIC KEY
//
// signed by both keys. The old key vouches for the new one, and signs nothing about entries after SIZE; the new one vouches that
// the old one was the log's. So whoever pinned any key of the chain verifies all of it offline.
type rotation struct {
	upTo     uint64
	old, new PublicKey
}

const (
	rotationTitle = "remit ledger key rotation v1"
	dirRotation   = "rotation"
	maxRotations  = 1000
	maxRotation   = 8 << 10 // bytes
)

// former is a key that was replaced: what it signed counts up to a size of the log.
type former struct {
	verifier note.Verifier
	upTo     uint64
}

// NewRotation returns the note that replaces a key; the old one has signed nothing beyond upTo, and will not.
func NewRotation(old, next *Key, upTo uint64) ([]byte, error) {
	if old.Name() != next.Name() {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the new key has another name: it would be another log's"}
	}
	text := fmt.Sprintf("%s\n%s\n%d\n%s\n%s\n", rotationTitle, old.Name(), upTo, old.Public(), next.Public())
	return note.Sign(&note.Note{Text: text}, old.signer, next.signer)
}

func parseRotation(text []byte) (rotation, error) {
	bad := errors.New("it is no rotation that both keys signed")
	lines := strings.Split(string(text), "\n")
	if len(lines) < 6 || lines[0] != rotationTitle {
		return rotation{}, bad
	}
	upTo, err := strconv.ParseUint(lines[2], 10, 63)
	if err != nil || strconv.FormatUint(upTo, 10) != lines[2] {
		return rotation{}, bad
	}
	r := rotation{upTo: upTo}
	if r.old, err = ParsePublicKey(lines[3]); err != nil {
		return rotation{}, err
	}
	if r.new, err = ParsePublicKey(lines[4]); err != nil {
		return rotation{}, err
	}
	if r.old.Name() != lines[1] || r.new.Name() != lines[1] || r.old.text == r.new.text {
		return rotation{}, bad
	}
	n, err := note.Open(text, note.VerifierList(r.old.verifier, r.new.verifier))
	//remit:guard S34 TestRotationNeedsBothKeys
	if err != nil || len(n.Sigs) != 2 {
		return rotation{}, bad
	}
	if want := fmt.Sprintf("%s\n%s\n%d\n%s\n%s\n", rotationTitle, lines[1], upTo, r.old, r.new); n.Text != want {
		return rotation{}, bad
	}
	return r, nil
}

// Rotations reads the notes of a log, in order.
func Rotations(dir string) ([][]byte, error) {
	var out [][]byte
	for i := 1; i <= maxRotations; i++ {
		text, err := readBounded(filepath.Join(dir, dirRotation, strconv.Itoa(i)), maxRotation)
		if errors.Is(err, fs.ErrNotExist) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read rotation %d: %w", i, err)
		}
		out = append(out, text)
	}
	return nil, fmt.Errorf("the log has more than %d rotations", maxRotations)
}

// AddRotation keeps a note beside the log's earlier ones, durably.
func AddRotation(dir string, text []byte) error {
	before, err := Rotations(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, dirRotation), 0o700); err != nil {
		return err
	}
	if err := durable.Replace(filepath.Join(dir, dirRotation, strconv.Itoa(len(before)+1)), text, 0o600); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Join(dir, dirRotation)), syncDir(dir))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Follow returns the newest key of the chain that p belongs to, which also verifies what the earlier ones signed in their time.
// A chain that p does not belong to, or that has a gap, is an error.
func (p PublicKey) Follow(notes [][]byte) (PublicKey, error) {
	if len(notes) == 0 {
		return p, nil
	}
	bad := func(i int, why error) (PublicKey, error) {
		return PublicKey{}, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the chain of ledger keys is broken at rotation %d", i+1), Cause: why,
			Hint: "compare the log's folder rotation with a copy from elsewhere"}
	}
	var out PublicKey
	belongs := false
	for i, text := range notes {
		r, err := parseRotation(text)
		if err != nil {
			return bad(i, err)
		}
		//remit:guard S34 TestRotationNeedsBothKeys
		if i > 0 && (r.old.text != out.text || r.upTo < out.former[i-1].upTo) {
			return bad(i, errors.New("it does not replace the key before it"))
		}
		belongs = belongs || r.old.text == p.text || r.new.text == p.text
		was := out.former
		out = r.new
		out.former = append(was, former{r.old.verifier, r.upTo})
	}
	//remit:guard S34 TestRotationNeedsBothKeys
	if !belongs {
		return bad(len(notes)-1, errors.New("the given key is none of the chain's"))
	}
	return out, nil
}

// verifiers returns the keys that may have signed something about a log of this size, the newest first.
func (p PublicKey) verifiers(size uint64) []note.Verifier {
	if p.verifier == nil {
		return nil
	}
	out := []note.Verifier{p.verifier}
	for i := len(p.former) - 1; i >= 0; i-- {
		//remit:guard S34 TestRotation
		if size > p.former[i].upTo {
			break
		}
		out = append(out, p.former[i].verifier)
	}
	return out
}
