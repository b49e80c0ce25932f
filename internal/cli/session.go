// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/durable"
)

// session is what remit login leaves on the person's machine, in a file of mode 0600.
type session struct {
	Server  string          `json:"server"`
	CA      string          `json:"ca,omitempty"` // PEM; empty: the system's roots
	ID      remit.SessionID `json:"session"`
	Person  remit.Name      `json:"person"`
	Roles   []string        `json:"roles"`
	Expires time.Time       `json:"expires"`
	Token   string          `json:"token"`
	Key     string          `json:"key"`         // PEM: the session counts only with it
	Cert    string          `json:"certificate"` // PEM
}

const envSession = "REMIT_SESSION"

// sessionPath is $REMIT_SESSION, or session.json in the user's configuration folder.
func sessionPath() (string, error) {
	if p := os.Getenv(envSession); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", badUse("%v", err).hint("set %s to where the session is to be kept", envSession)
	}
	return filepath.Join(dir, "remit", "session.json"), nil
}

// hintLogin is the whole command: the server's certificate is an SVID, which the system's roots do not know.
const hintLogin = "remit login --server https://HOST:PORT --ca bundle.pem (the server's bundle.pem, from whoever runs it)"

var errNoSession = &remit.Error{Code: remit.CodeUnauthenticated, Msg: "you are not logged in", Hint: hintLogin}

// loadSession reads the session. A file that others can read is refused: they could have it.
func loadSession() (*session, error) {
	s, open, err := readSession()
	//remit:guard S2 TestLoginScripts test/script
	if err == nil && open {
		return nil, badUse("others can read the session's file").hint("remit logout ends that session; then log in again")
	}
	return s, err
}

// readSession says beside the session whether its file is open to others.
func readSession() (s *session, open bool, err error) {
	path, err := sessionPath()
	if err != nil {
		return nil, false, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, errNoSession
	}
	if err != nil {
		return nil, false, badUse("%v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false, badUse("%v", err)
	}
	s = &session{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, false, badUse("%s is no session: %v", path, err).hint("remit login writes a new one")
	}
	return s, info.Mode().Perm()&0o077 != 0, nil
}

// save replaces the file, which is never open to others.
func (s *session) save() error {
	path, err := sessionPath()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep the session: %w", err)
	}
	if err := durable.Replace(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the session: %w", err)
	}
	return nil
}

func removeSession() error {
	path, err := sessionPath()
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the session: %w", err)
	}
	return nil
}

// client returns a client that makes calls under the session.
func (s *session) client() (*api.Client, error) {
	key, err := tls.X509KeyPair([]byte(s.Cert), []byte(s.Key))
	if err != nil {
		return nil, badUse("the session's key cannot be read: %v", err).hint("remit login makes a new one")
	}
	r := api.Remote{URL: s.Server, Key: key, Token: remit.NewSecret(s.Token)}
	if s.CA != "" {
		r.Roots = x509.NewCertPool()
		if !r.Roots.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, badUse("the server's roots hold no certificate in PEM").hint("--ca takes the server's bundle.pem")
		}
	}
	return api.NewRemote(r)
}

// newKey gives the session a key of its own, with a certificate that says nothing and is signed by itself: it only carries the key.
func (s *session) newKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "remit login"}, NotBefore: now.Add(-time.Minute),
		NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	s.Cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	s.Key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return nil
}
