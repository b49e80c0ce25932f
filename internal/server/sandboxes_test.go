// SPDX-License-Identifier: Apache-2.0

package server

import (
	"path/filepath"
	"strings"
	"testing"

	"remit"
)

// A folder whose sandboxes' sockets could have no address is refused before anything is made in it, with what to do.
func TestSandboxSocketsFit(t *testing.T) {
	folder := filepath.Join(t.TempDir(), strings.Repeat("x", 80))
	b := sandboxes{sockets: filepath.Join(folder, "b"), drivers: filepath.Join(folder, "s")}
	_, err := b.open(t.Context())
	if remit.CodeOf(err) != remit.CodeInvalid || !strings.Contains(err.Error(), "107 are possible") {
		t.Errorf("%v", err)
	}
	if b.left() {
		t.Error("something was made")
	}
}
