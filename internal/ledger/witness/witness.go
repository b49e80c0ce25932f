// SPDX-License-Identifier: Apache-2.0

// Package witness is both sides of the C2SP tlog-witness protocol: Server cosigns checkpoints of the logs that it knows, each
// only after a proof that it extends the last one it cosigned, so that no two heads of one log are ever cosigned by it; Client
// asks witnesses to do so. A witness keeps one checkpoint for each log, durable before it answers. The package starts no
// goroutine that outlives a call.
package witness

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	tlog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/durable"
)

// Bounds of a request, as the protocol states them.
const (
	maxBody  = 64 << 10
	maxProof = 63 // hashes
	sizeType = "text/x.tlog.size"
)

// Config of a witness.
type Config struct {
	// Dir keeps the last checkpoint of each log; it is made with mode 0700. Required. One witness at a time may use it.
	Dir string
	// Key cosigns. Required.
	Key note.Signer
	// Logs are the public keys of the logs, at least one; the name of a key is its log's origin. Keys of one log stand in the order in
	// which they replaced each other: once a checkpoint of a later one was cosigned, the earlier ones are over.
	Logs []note.Verifier
}

// Server is a witness. It is safe for concurrent use.
type Server struct {
	cfg  Config
	lock *os.File
	logs map[string]*watched
}

// watched is one log.
type watched struct {
	keys []note.Verifier
	file string
	mu   sync.Mutex // held from reading the last checkpoint until the next is durable
}

// CreateKey makes a witness's key and writes it to path, which must not exist, with mode 0600. It returns the public key, in the
// form that logs and auditors are given.
func CreateKey(path, name string) (public string, err error) {
	private, plain, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%.80q cannot name a witness", name), Hint: "write a name without spaces and +, such as witness.company.com"}
	}
	if public, err = fnote.VKeyToCosignatureV1(plain); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("create the witness's key: %w", err)
	}
	_, err = fmt.Fprintf(f, "%s\n%s\n", private, public)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("create the witness's key: %w", err), os.Remove(path))
	}
	return public, nil
}

// LoadKey reads a key that CreateKey wrote. A file that others may read is refused.
func LoadKey(path string) (note.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load the witness's key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 || info.Size() > 4<<10 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: path + " is open to others, or no key", Hint: "chmod 600 it, and replace the key if others could read it"}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load the witness's key: %w", err)
	}
	private, _, _ := strings.Cut(string(text), "\n")
	signer, err := fnote.NewSignerForCosignatureV1(private)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: path + " is no key of a witness", Hint: "remit witness init makes one"} // no cause: it may quote the key
	}
	return signer, nil
}

// ParseKey parses a witness's public key.
func ParseKey(text string) (note.Verifier, error) {
	v, err := fnote.NewVerifierForCosignatureV1(strings.TrimSpace(text))
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%.80q is not a witness's public key", text), Hint: "remit witness init prints it", Cause: err}
	}
	return v, nil
}

// NewServer takes the folder and refuses a second witness on it.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Dir == "" || cfg.Key == nil || len(cfg.Logs) == 0 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a witness needs a folder, a key and a log", Hint: "remit witness serve --help"}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&remit.Error{Code: remit.CodeUnavailable, Msg: "another witness uses " + cfg.Dir, Cause: err}, lock.Close())
	}
	s := &Server{cfg: cfg, lock: lock, logs: map[string]*watched{}}
	for _, key := range cfg.Logs {
		l := s.logs[key.Name()]
		if l == nil {
			sum := sha256.Sum256([]byte(key.Name()))
			l = &watched{file: filepath.Join(cfg.Dir, hex.EncodeToString(sum[:])+".checkpoint")}
			s.logs[key.Name()] = l
		}
		l.keys = append(l.keys, key)
	}
	return s, nil
}

// Close lets another witness use the folder.
func (s *Server) Close() error { return s.lock.Close() }

// ServeHTTP answers POST /add-checkpoint.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/add-checkpoint" {
		http.NotFound(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	req, err := parseRequest(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a := s.add(req)
	if a.status == http.StatusConflict {
		w.Header().Set("Content-Type", sizeType)
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

// request is a parsed add-checkpoint.
type request struct {
	old    uint64
	proof  [][]byte
	note   []byte
	origin string
}

// parseRequest parses "old SIZE", hashes in base64, an empty line and the checkpoint.
func parseRequest(body []byte) (request, error) {
	var r request
	head, text, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	size, isOld := strings.CutPrefix(lines[0], "old ")
	n, err := strconv.ParseUint(size, 10, 63)
	if !ok || !isOld || err != nil || strconv.FormatUint(n, 10) != size {
		return r, errors.New("the request does not begin with: old SIZE")
	}
	r.old, r.note = n, text
	if len(lines)-1 > maxProof {
		return r, fmt.Errorf("a proof of %d hashes: the limit is %d", len(lines)-1, maxProof)
	}
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != sha256.Size {
			return r, errors.New("a line of the proof is no hash in base64")
		}
		r.proof = append(r.proof, h)
	}
	origin, _, ok := strings.Cut(string(text), "\n")
	if !ok || origin == "" {
		return r, errors.New("no checkpoint follows")
	}
	r.origin = origin
	return r, nil
}

type answer struct {
	status int
	body   string
}

func refuse(status int, format string, args ...any) answer {
	return answer{status, fmt.Sprintf(format, args...) + "\n"}
}

// add judges a request and cosigns. The order of the refusals is the protocol's.
func (s *Server) add(r request) answer {
	l, ok := s.logs[r.origin]
	if !ok {
		return refuse(http.StatusNotFound, "this log is not known here")
	}
	next, signed, err := l.open(r.note)
	//remit:guard S34 TestWitnessRefuses
	if err != nil {
		return refuse(http.StatusForbidden, "no signature of the log verifies")
	}
	if r.old > next.Size {
		return refuse(http.StatusBadRequest, "the old size is above the checkpoint's")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last, lastSigned, err := l.last()
	if err != nil {
		return refuse(http.StatusInternalServerError, "the witness cannot read its state")
	}
	//remit:guard S34 TestReplacedKeyIsOver
	if l.newest(signed) < l.newest(lastSigned) {
		return refuse(http.StatusForbidden, "the key of this signature was replaced")
	}
	//remit:guard S34 TestWitnessRefuses
	if r.old != last.Size {
		return answer{http.StatusConflict, fmt.Sprintf("%d\n", last.Size)}
	}
	//remit:guard S34 TestSplitView
	if r.old == next.Size && r.old > 0 && !bytes.Equal(last.Hash, next.Hash) {
		return answer{http.StatusConflict, fmt.Sprintf("%d\n", last.Size)}
	}
	err = consistent(last, next, r.proof)
	//remit:guard S34 TestWitnessRefuses
	if err != nil {
		return refuse(http.StatusUnprocessableEntity, "the proof does not lead from size %d to %d", r.old, next.Size)
	}
	if err := durable.Replace(l.file, r.note, 0o600); err != nil {
		return refuse(http.StatusInternalServerError, "the witness cannot keep its state")
	}
	cosigned, err := note.Sign(&note.Note{Text: signed.Text}, s.cfg.Key)
	if err != nil {
		return refuse(http.StatusInternalServerError, "the witness cannot sign")
	}
	return answer{http.StatusOK, string(cosigned[len(signed.Text)+1:])}
}

// open verifies a checkpoint of the log by any of its keys.
func (l *watched) open(text []byte) (*tlog.Checkpoint, *note.Note, error) {
	n, err := note.Open(text, note.VerifierList(l.keys...))
	if err != nil {
		return nil, nil, err
	}
	var cp tlog.Checkpoint
	if _, err := cp.Unmarshal([]byte(n.Text)); err != nil {
		return nil, nil, err
	}
	if cp.Origin != l.keys[0].Name() || len(cp.Hash) != sha256.Size {
		return nil, nil, errors.New("not a checkpoint of this log")
	}
	return &cp, n, nil
}

// last is the checkpoint that was cosigned last; empty before the first.
func (l *watched) last() (*tlog.Checkpoint, *note.Note, error) {
	text, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return &tlog.Checkpoint{Hash: rfc6962.DefaultHasher.EmptyRoot()}, &note.Note{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return l.open(text)
}

// newest is the place in the log's order of the latest key that signed; -1: none did.
func (l *watched) newest(n *note.Note) int {
	for i := len(l.keys) - 1; i >= 0; i-- {
		if slices.ContainsFunc(n.Sigs, func(s note.Signature) bool { return s.Hash == l.keys[i].KeyHash() }) {
			return i
		}
	}
	return -1
}

func consistent(last, next *tlog.Checkpoint, path [][]byte) error {
	if last.Size == 0 {
		if len(path) > 0 {
			return errors.New("a proof from nothing is empty")
		}
		return nil
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, last.Size, next.Size, path, last.Hash, next.Hash)
}
