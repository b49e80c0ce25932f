// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"
	"testing"

	"remit/internal/api"
)

// TestChildEnvironment: a launched agent gets its own socket and token, and none of the launcher's secrets.
func TestChildEnvironment(t *testing.T) {
	mine := []string{"PATH=/bin", "LC_ALL=C", "HOME=/root", "AWS_SECRET_ACCESS_KEY=x", "GITHUB_TOKEN=x", "SSH_AUTH_SOCK=/s", "KUBECONFIG=/admin",
		"REMIT_SERVER=unix:///admin.sock", "SPIFFE_ENDPOINT_SOCKET=unix:///other", "LD_PRELOAD=/x.so", "HTTPS_PROXY=http://user:pass@proxy"}
	l := &api.Launched{Socket: "/l.sock", HTTPS: "https://localhost", SetUID: true, UID: 4001}
	got := childEnv(mine, l, "/home")
	want := []string{"PATH=/bin", "LC_ALL=C", "SPIFFE_ENDPOINT_SOCKET=unix:///l.sock", "REMIT_URL=https://localhost",
		"REMIT_RUN_TOKEN_FILE=/home/run-token", "HOME=/home"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("with a user of its own: %q", got)
	}
	l.SetUID = false // the same user could read the launcher's environment anyway
	for _, e := range childEnv(mine, l, "/home") {
		if strings.Contains(e, "admin") || strings.Contains(e, "other") {
			t.Errorf("as the launcher's user: %q", e)
		}
	}
}
