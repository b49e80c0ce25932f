// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"remit/internal/durable"
)

// A ring's file holds the ring whole, keys and states, and is replaced whole: after a crash at any moment there stands the state
// before a step or after it, never one between.
type ringFile struct {
	V        int        `json:"v"`
	Sequence uint64     `json:"sequence"` // moves with every change of what is published
	Keys     []slotFile `json:"keys"`
}

type slotFile struct {
	ID       string    `json:"id"`
	State    State     `json:"state"`
	Created  time.Time `json:"created"`
	Activate time.Time `json:"activate,omitzero"`
	NotAfter time.Time `json:"not_after"`
	Key      string    `json:"key"`             // PEM, PKCS #8
	Chain    []string  `json:"chain,omitempty"` // PEM
}

const (
	fileVersion = 1
	maxFile     = 1 << 20
	maxKeys     = 64
)

// state is a ring at one moment. It never changes.
type state struct {
	sequence uint64
	slots    []slot
}

// Keeper turns the bytes of a key file into what is stored and back: a passphrase, a TPM, a KMS. keyfile.Age implements it. Safe
// for concurrent use.
type Keeper interface {
	Wrap(plain []byte) ([]byte, error)
	Unwrap(stored []byte) ([]byte, error)
}

// plaintext stores key files as they are.
type plaintext struct{}

func (plaintext) Wrap(b []byte) ([]byte, error)   { return b, nil }
func (plaintext) Unwrap(b []byte) ([]byte, error) { return b, nil }

// load reads a ring's file; one that does not exist is an empty ring. A file that others may read is refused (S7).
func load(path string, keeper Keeper) (*state, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &state{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open key file: %w", err)
	}
	//remit:guard S7 TestKeyFiles
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %04o: others may read it; chmod 600 and rotate its keys", path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if b, err = keeper.Unwrap(b); err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	st, err := parseRing(b)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return st, nil
}

func parseRing(b []byte) (*state, error) {
	if len(b) > maxFile {
		return nil, errors.New("too long")
	}
	var f ringFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	//remit:guard S7 TestKeyFiles
	if f.V != fileVersion || len(f.Keys) > maxKeys {
		return nil, fmt.Errorf("version %d with %d keys is not readable", f.V, len(f.Keys))
	}
	st := &state{sequence: f.Sequence}
	count := map[State]int{}
	ids := map[string]bool{}
	for _, k := range f.Keys {
		s, err := k.slot()
		if err != nil {
			return nil, fmt.Errorf("key %.40q: %w", k.ID, err)
		}
		count[s.state]++
		//remit:guard S7 TestKeyFiles
		if ids[s.id] || count[Next] > 1 || count[Current] > 1 {
			return nil, fmt.Errorf("key %.40q: it, or its state, stands twice", k.ID)
		}
		ids[s.id] = true
		st.slots = append(st.slots, s)
	}
	return st, nil
}

func (k *slotFile) slot() (slot, error) {
	s := slot{id: k.ID, state: k.State, created: k.Created, activate: k.Activate, notAfter: k.NotAfter}
	if s.state != Next && s.state != Current && s.state != Old {
		return s, fmt.Errorf("unknown state %.20q", k.State)
	}
	block, rest := pem.Decode([]byte(k.Key))
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return s, errors.New("the key is not one PEM block PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return s, fmt.Errorf("parse key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return s, errors.New("the key is not ECDSA P-256")
	}
	s.key = key
	//remit:guard S7 TestKeyFiles
	if s.id != keyID(&key.PublicKey) {
		return s, errors.New("the id is not that of the key")
	}
	for _, text := range k.Chain {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return s, errors.New("the chain holds something else than certificates")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return s, fmt.Errorf("parse certificate: %w", err)
		}
		s.chain = append(s.chain, cert)
	}
	if len(s.chain) > 0 && !key.PublicKey.Equal(s.chain[0].PublicKey) {
		return s, errors.New("the certificate is not that of the key")
	}
	return s, nil
}

// keyID is a hash of the public key: the same key has the same id everywhere, and no two keys share one.
func keyID(k *ecdsa.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return "" // not a P-256 key; equals no id
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:10])
}

func (st *state) marshal() ([]byte, error) {
	f := ringFile{V: fileVersion, Sequence: st.sequence, Keys: []slotFile{}}
	for _, s := range st.slots {
		der, err := x509.MarshalPKCS8PrivateKey(s.key)
		if err != nil {
			return nil, fmt.Errorf("encode key %s: %w", s.id, err)
		}
		k := slotFile{ID: s.id, State: s.state, Created: s.created, Activate: s.activate, NotAfter: s.notAfter,
			Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
		for _, c := range s.chain {
			k.Chain = append(k.Chain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
		}
		f.Keys = append(f.Keys, k)
	}
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode key file: %w", err)
	}
	return append(b, '\n'), nil
}

// save replaces the ring's file. When it returns nil, the state is durable.
func (st *state) save(path string, keeper Keeper) error {
	b, err := st.marshal()
	if err != nil {
		return err
	}
	if b, err = keeper.Wrap(b); err != nil {
		return err
	}
	if err := durable.Replace(path, b, 0o600); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return nil
}
