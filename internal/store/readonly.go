// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"math"
	"os"

	"zombiezen.com/go/sqlite"

	"remit"
)

// Reader reads the entries of a store that another process may have open. It writes nothing and takes no lock. It is for one
// goroutine.
type Reader struct{ conn *sqlite.Conn }

// OpenReader opens the store at path for reading.
func OpenReader(path string) (*Reader, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	conn, err := openReader(path)
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", path, err)
	}
	return &Reader{conn: conn}, nil
}

// Entries returns at most limit entries with numbers above after, in order.
func (r *Reader) Entries(after uint64, limit int) ([]remit.Entry, error) {
	return entries(r.conn, after, math.MaxInt64, min(max(limit, 1), 4096), false)
}

// Close ends reading.
func (r *Reader) Close() error { return r.conn.Close() }
