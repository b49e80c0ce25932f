// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// maxEntry is the most that an entry of the log can hold: its length stands in two bytes.
const maxEntry = 64<<10 - 1

// entrySeq returns the number that an entry carries. Entries begin with {"v":V,"seq":N, in exactly these bytes, for every
// version; anything else, and what is not JSON as a whole, is an error.
func entrySeq(body []byte) (uint64, error) {
	if len(body) > maxEntry {
		return 0, fmt.Errorf("%d bytes: the limit is %d", len(body), maxEntry)
	}
	rest, ok := bytes.CutPrefix(body, []byte(`{"v":`))
	if !ok {
		return 0, errors.New("it does not begin with its version")
	}
	version, rest, ok := bytes.Cut(rest, []byte(`,"seq":`))
	if _, err := canonicalUint(version); !ok || err != nil {
		return 0, errors.New("its number does not follow its version")
	}
	digits, _, ok := bytes.Cut(rest, []byte{','})
	seq, err := canonicalUint(digits)
	if !ok || err != nil || seq == 0 {
		return 0, errors.New("it carries no number")
	}
	if !json.Valid(body) {
		return 0, errors.New("it is not JSON")
	}
	return seq, nil
}

func canonicalUint(b []byte) (uint64, error) {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err == nil && strconv.FormatUint(n, 10) != string(b) {
		return 0, errors.New("not in its shortest form")
	}
	return n, err
}
