// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strings"
	"testing"

	"zombiezen.com/go/sqlite"
)

// explained returns one column of what SQLite says that it will do.
func explained(t *testing.T, conn *sqlite.Conn, statement string, column int) string {
	t.Helper()
	st, _, err := conn.PrepareTransient(statement)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Finalize() //nolint:errcheck // a test
	var said []string
	for {
		more, err := st.Step()
		if err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		if !more {
			return strings.Join(said, "\n")
		}
		said = append(said, st.ColumnText(column))
	}
}

// TestPlans: what is written for every decision and lease opens no table in memory, and live leases are found by their index.
func TestPlans(t *testing.T) {
	conn, err := sqlite.OpenConn(":memory:", sqlite.OpenReadWrite, sqlite.OpenCreate)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test
	if err := migrate(conn); err != nil {
		t.Fatal(err)
	}
	for _, put := range []string{putLeaseSQL, putCredentialSQL, putGrantSQL, putRunSQL, putHeldSQL, putUsedSQL, putIssuedSQL, putSessionSQL, putLaunchSQL} {
		if said := explained(t, conn, "EXPLAIN "+put, 1); strings.Contains(said, "OpenEphemeral") || !strings.Contains(said, "Insert") {
			t.Errorf("%s does\n%s", put, said)
		}
	}
	if said := explained(t, conn, "EXPLAIN QUERY PLAN "+liveLeasesSQL, 3); !strings.Contains(said, "leases_live") {
		t.Errorf("live leases are found by %q", said)
	}
}
