// SPDX-License-Identifier: Apache-2.0

// Package postgres reads a PostgreSQL server's own log for what was executed under leases, and joins it to them by the login role. A
// lease's role logs each of its statements when it ends (log_min_duration_statement, which its holder cannot change). Statements
// of other roles are not looked at; one of a lease's role that no record knows is a finding. It owns no goroutine: Read is called
// again and again by one.
package postgres

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"remit"
)

// Acts records executed acts: all are durable, or none is.
type Acts interface {
	Executed(ctx context.Context, acts []remit.Outcome) error
}

// Config of a Log. All but Now are required.
type Config struct {
	Target       string
	Path         string // of the log, one JSON object in a line (log_destination = jsonlog)
	Installation string
	Database     string
	Acts         Acts
	// Lease returns a lease of this target.
	Lease func(remit.LeaseID) (remit.Lease, bool)
	// Load and Save keep the position across restarts; Load returns nil where none was saved.
	Load func() ([]byte, error)
	Save func([]byte) error
	Now  func() time.Time
}

// Log is one server's log and how far it was read. It belongs to one goroutine.
type Log struct {
	cfg  Config
	role *regexp.Regexp
	file *os.File
	at   position
}

// position is up to where everything is recorded.
type position struct {
	Inode  uint64 `json:"inode"`
	Offset int64  `json:"offset"`
}

const (
	maxLine  = 1 << 20 // a longer one is skipped, and says so
	maxBatch = 256     // acts of one change
	maxText  = 1024
)

// New checks cfg. It opens nothing.
func New(cfg Config) (*Log, error) {
	if cfg.Target == "" || cfg.Path == "" || cfg.Installation == "" || cfg.Acts == nil || cfg.Lease == nil || cfg.Load == nil || cfg.Save == nil {
		return nil, errors.New("postgres log: Target, Path, Installation, Acts, Lease, Load and Save are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Log{cfg: cfg, role: regexp.MustCompile(`^remit_` + regexp.QuoteMeta(cfg.Installation) + `_([a-z2-7]{26})$`)}, nil
}

// Close closes the file.
func (g *Log) Close() {
	if g.file != nil {
		_ = g.file.Close()
		g.file = nil
	}
}

// Read records what was written since the last call. What was recorded before an error is not read again; the rest is. A log
// that was rotated is read to its end first.
func (g *Log) Read(ctx context.Context) error {
	if g.file == nil {
		if err := g.open(); err != nil {
			return err
		}
	}
	for {
		more, err := g.batch(ctx)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		rotated, err := g.rotated()
		if err != nil || !rotated {
			return err
		}
	}
}

// open begins where the last reading ended, or at the beginning of another file.
func (g *Log) open() error {
	saved, err := g.cfg.Load()
	if err != nil {
		return fmt.Errorf("load the position in the log: %w", err)
	}
	if len(saved) > 0 && g.at == (position{}) {
		if err := json.Unmarshal(saved, &g.at); err != nil {
			return fmt.Errorf("load the position in the log: %w", err)
		}
	}
	f, err := os.Open(g.cfg.Path)
	if err != nil {
		return fmt.Errorf("read the server's log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if id := inode(info); id != g.at.Inode || info.Size() < g.at.Offset {
		g.at = position{Inode: id}
	}
	g.file = f
	return nil
}

func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// rotated reports whether the name stands for another file by now, or for a shorter one, and turns to it.
func (g *Log) rotated() (bool, error) {
	info, err := os.Stat(g.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // between two
	}
	if err != nil {
		return false, fmt.Errorf("look at the server's log: %w", err)
	}
	if inode(info) == g.at.Inode && info.Size() >= g.at.Offset {
		return false, nil
	}
	g.Close()
	return true, g.open()
}

// batch records the next acts; more says that there may be others.
func (g *Log) batch(ctx context.Context) (more bool, err error) {
	info, err := g.file.Stat()
	if err != nil || info.Size() <= g.at.Offset {
		return false, err
	}
	if _, err := g.file.Seek(g.at.Offset, io.SeekStart); err != nil {
		return false, fmt.Errorf("read the server's log: %w", err)
	}
	r := bufio.NewReaderSize(g.file, maxLine)
	next, acts := g.at, []remit.Outcome{}
	for len(acts) < maxBatch {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			n, err := skip(r)
			if err != nil {
				break // it is still being written
			}
			next.Offset += int64(len(line)) + n
			acts = append(acts, remit.Outcome{At: g.cfg.Now(), Target: g.cfg.Target, Source: "postgres-log", Verb: "unread", Resource: "a line of more than 1 MiB"})
			continue
		}
		if err != nil {
			break // the end, or half a line
		}
		next.Offset += int64(len(line))
		if act, ok := g.act(line); ok {
			acts = append(acts, act)
		}
	}
	if next == g.at {
		return false, nil
	}
	if len(acts) > 0 {
		if err := g.cfg.Acts.Executed(ctx, acts); err != nil {
			return false, err
		}
	}
	g.at = next
	text, err := json.Marshal(g.at)
	if err == nil {
		err = g.cfg.Save(text)
	}
	if err != nil {
		return false, fmt.Errorf("save the position in the log: %w", err)
	}
	return len(acts) >= maxBatch, nil
}

// skip reads to the end of a line that does not fit.
func skip(r *bufio.Reader) (n int64, err error) {
	for {
		part, err := r.ReadSlice('\n')
		n += int64(len(part))
		if err == nil || !errors.Is(err, bufio.ErrBufferFull) {
			return n, err
		}
	}
}

// line is one entry of jsonlog, the members that are read.
type line struct {
	Timestamp   string `json:"timestamp"`
	User        string `json:"user"`
	Database    string `json:"dbname"`
	RemoteHost  string `json:"remote_host"`
	Session     string `json:"session_id"`
	Number      int64  `json:"line_num"`
	Severity    string `json:"error_severity"`
	State       string `json:"state_code"`
	Message     string `json:"message"`
	Detail      string `json:"detail"`
	Statement   string `json:"statement"`
	Application string `json:"application_name"`
}

var ended = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?s)^duration: ([0-9.]+) ms  (?:statement|execute [^:]*|fastpath function call): ?(.*)$`)
})

// act turns a line into an outcome; ok is false for lines that are not about a statement of a lease's role: other roles, parsing and
// binding, which say nothing was done, and refused logins, which are no evidence against anybody (S36).
func (g *Log) act(text []byte) (act remit.Outcome, ok bool) {
	var l line
	if !bytes.Contains(text, []byte("remit_"+g.cfg.Installation+"_")) || json.Unmarshal(text, &l) != nil {
		return act, false
	}
	m := g.role.FindStringSubmatch(l.User)
	//remit:guard S36 TestLogJoinsStatementsToLeases
	if m == nil {
		return act, false
	}
	act = remit.Outcome{At: g.when(l.Timestamp), Target: g.cfg.Target, Source: "postgres-log", Resource: "database " + cut(l.Database),
		SourceID: cut(fmt.Sprintf("%s/%d", l.Session, l.Number)), Credential: l.User}
	done := ended().FindStringSubmatch(l.Message)
	statement := l.Statement
	switch {
	case l.Severity == "LOG" && done != nil:
		act.Status, act.Allowed, statement = 200, true, done[2]
	case (l.Severity == "ERROR" || l.Severity == "FATAL" || l.Severity == "PANIC") && statement != "":
		act.Status = 400
		if slices.Contains([]string{"42501", "44000", "25006"}, l.State) {
			act.Status = 403
		}
	default:
		return act, false
	}
	act.Verb = verb(statement)
	lease, known := g.cfg.Lease(remit.LeaseID("lease-" + m[1]))
	if known && lease.Target == g.cfg.Target {
		act.Lease = lease.ID
		act.Effective = act.Allowed && act.Verb == strings.TrimPrefix(lease.Action, "postgres.")
	}
	act.Detail = details(&l, statement)
	return act, true
}

func details(l *line, statement string) map[string]string {
	d := map[string]string{"statement": statement, "from": l.RemoteHost, "client": l.Application, "parameters": strings.TrimPrefix(l.Detail, "parameters: ")}
	if l.Severity != "LOG" {
		d["refused"], d["sqlstate"], d["parameters"] = l.Message, l.State, ""
	}
	for k, v := range d {
		if v == "" {
			delete(d, k)
		} else {
			d[k] = cut(v)
		}
	}
	return d
}

// when reads a time stamp. Of a zone that is not UTC only the name is written, which is none for sure: then it is the time of reading.
func (g *Log) when(stamp string) time.Time {
	for _, zone := range []string{" UTC", " GMT", " Etc/UTC"} {
		if text, ok := strings.CutSuffix(stamp, zone); ok {
			if t, err := time.Parse("2006-01-02 15:04:05.000", text); err == nil {
				return t
			}
		}
	}
	return g.cfg.Now()
}

var verbs = []string{"select", "insert", "update", "delete", "copy", "fetch", "declare", "begin", "commit", "rollback", "set", "show", "explain", "execute", "prepare", "do",
	"with", "table", "values", "create", "alter", "drop", "grant", "truncate", "lock", "listen", "notify", "move", "close", "discard", "reset"}

// verb is the statement's first word, if it is one that we know. TABLE reads; what a WITH does is not looked into.
func verb(statement string) string {
	word := strings.ToLower(strings.TrimLeft(statement, " \t\r\n(;"))
	if i := strings.IndexFunc(word, func(r rune) bool { return r < 'a' || r > 'z' }); i >= 0 {
		word = word[:i]
	}
	switch {
	case word == "table":
		return "select"
	case slices.Contains(verbs, word):
		return word
	}
	return "other"
}

// cut bounds a text from outside, at a character's end.
func cut(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
