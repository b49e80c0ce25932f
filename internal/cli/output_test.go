// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"testing"
)

// TestAgentsWordsCannotDrawOnTheTerminal: S39. What an agent wrote into a request comes to the operator's terminal without its
// escape sequences; lines and tables stay.
func TestAgentsWordsCannotDrawOnTheTerminal(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	if err := a.show(nil, func() { fmt.Fprint(a.out, "a\x1b[2J\u009b2J\u202eb\tc\n\nd\r\x07\x7f\n") }); err != nil {
		t.Fatal(err)
	}
	if want := "a\uFFFD[2J\uFFFD2J\uFFFDb\tc\n\nd\uFFFD\uFFFD\uFFFD\n"; out.String() != want {
		t.Errorf("%q, not %q", out.String(), want)
	}
	if a.out != &out {
		t.Error("the output stays wrapped")
	}
}
