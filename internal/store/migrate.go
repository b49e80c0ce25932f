// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"remit"
)

// migrations bring the schema from version i to i+1. They are only ever appended to.
var migrations = [...]string{schema1, schema2, schema3, schema4, schema5, schema6, schema7, schema8, schema9}

// Every noun's row is its JSON body; columns repeat what is searched for. Times are milliseconds since 1970. refs finds
// events by what they refer to; it follows behind (meta.indexed), so that appending an event touches one page.
const schema1 = `
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE events (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE refs (ref INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (ref, seq)) WITHOUT ROWID;

CREATE TABLE runs (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, state TEXT NOT NULL,
	workflow TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX runs_state ON runs (state, n);
CREATE INDEX runs_workflow ON runs (workflow, n);
CREATE TABLE agents (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE grants (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, state TEXT NOT NULL,
	agent TEXT NOT NULL, run TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX grants_state ON grants (state, n);
CREATE INDEX grants_run ON grants (run, n);
CREATE INDEX grants_agent ON grants (agent, n);
CREATE TABLE leases (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, state TEXT NOT NULL,
	grant_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX leases_live ON leases (state) WHERE state IN ('pending', 'active', 'revoking');
CREATE INDEX leases_grant ON leases (grant_id);
CREATE TABLE lease_credentials (credential TEXT PRIMARY KEY, lease TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE launches (id TEXT PRIMARY KEY, epoch INTEGER NOT NULL, ended INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX launches_live ON launches (ended) WHERE ended = 0;
CREATE TABLE used (key TEXT PRIMARY KEY, until INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX used_until ON used (until);
CREATE TABLE issued (credential TEXT PRIMARY KEY, until INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX issued_until ON issued (until);
CREATE TABLE statements (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, source TEXT NOT NULL,
	kind TEXT NOT NULL, name TEXT NOT NULL, added INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX statements_name ON statements (source, kind, name, added);
CREATE INDEX statements_epoch ON statements (source, epoch);
CREATE TABLE statement_subjects (subject TEXT NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL, added INTEGER NOT NULL,
	n INTEGER NOT NULL, PRIMARY KEY (subject, source, kind, added, n)) WITHOUT ROWID;
CREATE TABLE revisions (digest TEXT PRIMARY KEY, epoch INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX revisions_epoch ON revisions (epoch);
`

// What an entry commits to lies beside it, where it can be erased: disclosures in clear, and those of sensitive values
// encrypted.
const schema2 = `
ALTER TABLE events ADD COLUMN payload BLOB;
ALTER TABLE events ADD COLUMN private BLOB;
`

// schema3 replaces the table of refs, which took a page for each, by the segments of index.go, which are built at the next start.
const schema3 = `
DROP TABLE refs;
DELETE FROM meta WHERE name = 'indexed';
CREATE TABLE ref_segments (last INTEGER PRIMARY KEY, first INTEGER NOT NULL, block INTEGER NOT NULL, fences BLOB NOT NULL);
CREATE TABLE ref_blocks (n INTEGER PRIMARY KEY, refs BLOB NOT NULL);
`

// schema9 says the same without a list of three, for which SQLite opens a table in memory at every write of a lease.
const schema9 = `
DROP INDEX leases_live;
CREATE INDEX leases_live ON leases (state) WHERE state = 'pending' OR state = 'active' OR state = 'revoking';
`

// migrate brings the schema to this program's version, one transaction a step.
func migrate(conn *sqlite.Conn) error {
	var version int
	err := sqlitex.ExecuteTransient(conn, "PRAGMA user_version", &sqlitex.ExecOptions{ResultFunc: func(st *sqlite.Stmt) error {
		version = st.ColumnInt(0)
		return nil
	}})
	if err != nil {
		return err
	}
	if version > len(migrations) {
		return &remit.Error{Code: remit.CodeInvalid,
			Msg:  fmt.Sprintf("the store has schema %d, this program knows up to %d", version, len(migrations)),
			Hint: "run the newer version of remit, or restore the backup from before the upgrade"}
	}
	for ; version < len(migrations); version++ {
		script := fmt.Sprintf("%s\nPRAGMA user_version = %d;", migrations[version], version+1)
		if err := sqlitex.ExecuteScript(conn, script, nil); err != nil {
			return fmt.Errorf("migrate the store to schema %d: %w", version+1, err)
		}
	}
	return nil
}
