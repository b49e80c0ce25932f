// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"

	"remit"
)

// putErasure forgets payloads. The connection overwrites what it frees (secure_delete), and once the batch is durable the log of
// pages is emptied, too.
func putErasure(conn *sqlite.Conn, e *remit.Erasure) error {
	for _, seq := range e.Entries {
		if err := eraseEntry(conn, seq); err != nil {
			return err
		}
	}
	for _, run := range e.Runs {
		if err := exec(conn, eraseHeldSQL, string(run)); err != nil {
			return err
		}
	}
	return nil
}

func erases(ready []*pending) bool {
	for _, p := range ready {
		for i := range p.rows {
			if _, ok := p.rows[i].row.(remit.Erasure); ok {
				return true
			}
		}
	}
	return false
}
