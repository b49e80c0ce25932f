// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"remit"
)

// batchText is what a receipt's signature covers:
//
//	remit receipt v1
//	NAME
//	FIRST SIZE
//	BASE64 OF THE ROOT
//
// Each line ends in a newline. Its first line holds spaces, which no key name and so no checkpoint's first line does: a
// signed receipt can never be read as a checkpoint, nor the reverse.
func batchText(name string, first, size uint64, root []byte) []byte {
	return fmt.Appendf(nil, "remit receipt v1\n%s\n%d %d\n%s\n", name, first, size, base64.StdEncoding.EncodeToString(root))
}

// Bounds of a receipt: a batch is never larger, so its path is never longer.
const (
	maxBatch   = 1 << 22
	maxPath    = 64
	maxReceipt = 16 << 10 // bytes of JSON
)

// VerifyReceipt checks that the ledger's key vouches for the entry with exactly these bytes at the receipt's number. A nil body
// checks the receipt alone.
func VerifyReceipt(r remit.Receipt, body []byte, key PublicKey) error {
	bad := func(format string, args ...any) error {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("receipt of entry %d: ", r.Seq) + fmt.Sprintf(format, args...)}
	}
	if r.First == 0 || r.Size == 0 || r.Size > maxBatch || r.Seq < r.First || r.Seq-r.First >= r.Size ||
		len(r.Path) > maxPath || len(r.Leaf) != 32 {
		return bad("its numbers do not fit together")
	}
	if r.Key != key.Name() {
		return bad("it is signed by %.80q, not by %q", r.Key, key.Name())
	}
	if body != nil {
		if seq, err := entrySeq(body); err != nil || seq != r.Seq {
			return bad("the entry carries another number")
		}
		//remit:guard S34 TestReceipts
		if h := (remit.Entry{Body: body}).Hash(); !bytes.Equal(h[:], r.Leaf) {
			return bad("the entry has another hash")
		}
	}
	root, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, r.Seq-r.First, r.Size, r.Leaf, r.Path)
	if err != nil {
		return bad("its path does not lead to a root")
	}
	//remit:guard S34 TestReceipts
	if !key.verifies(batchText(r.Key, r.First, r.Size, root), r.Signature, r.First+r.Size-1) {
		return bad("its signature does not verify")
	}
	return nil
}

// ParseReceipt parses one receipt strictly: unknown members and trailing text are errors.
func ParseReceipt(b []byte) (remit.Receipt, error) {
	var r remit.Receipt
	if err := unmarshalStrict(b, maxReceipt, &r); err != nil {
		return remit.Receipt{}, &remit.Error{Code: remit.CodeInvalid, Msg: "this is not a receipt", Cause: err}
	}
	return r, nil
}

// Promise is a receipt with the answer that it came with, as far as the holder knows it.
type Promise struct {
	Receipt  remit.Receipt    `json:"receipt"`
	Decision remit.DecisionID `json:"decision_id,omitempty"`
	Effect   string           `json:"effect,omitempty"` // allow, deny or hold
}

// ReadReceipts parses a file of receipts, one a line: either a receipt alone or a Promise. Empty lines are skipped.
func ReadReceipts(r io.Reader) ([]Promise, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxReceipt)
	var out []Promise
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		p, err := parsePromise(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		out = append(out, p)
	}
	return out, lines.Err()
}

func parsePromise(line []byte) (p Promise, err error) {
	if unmarshalStrict(line, maxReceipt, &p) == nil && p.Receipt.Seq != 0 {
		return p, nil
	}
	r, err := ParseReceipt(line)
	return Promise{Receipt: r}, err
}

func unmarshalStrict(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%d bytes: the limit is %d", len(b), limit)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the value")
	}
	return nil
}
