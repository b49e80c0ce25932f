// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"remit"
)

const maxSecretBytes = 64 << 10

// SecretRef says where a secret is; configuration never holds the secret itself (S7). It is written {file: PATH} or
// {env: NAME}.
type SecretRef struct {
	_    struct{} `one:"file,env"`
	File string   `yaml:"file" doc:"A file that only the server's user can read; a trailing newline is cut."`
	Env  string   `yaml:"env" doc:"An environment variable."`
}

// IsZero reports whether nothing is referred to.
func (r SecretRef) IsZero() bool { return r.File == "" && r.Env == "" }

// Resolve reads the secret. A file that others can read or write, and an empty secret, is an error.
func (r SecretRef) Resolve() (remit.Secret, error) {
	switch {
	case (r.File == "") == (r.Env == ""):
		return remit.Secret{}, errors.New("a secret is either {file: PATH} or {env: NAME}")
	case r.Env != "":
		s, ok := os.LookupEnv(r.Env)
		if !ok || s == "" {
			return remit.Secret{}, fmt.Errorf("read secret: environment variable %s is not set", r.Env)
		}
		return remit.NewSecret(s), nil
	}
	return readSecret(r.File)
}

func readSecret(name string) (_ remit.Secret, err error) {
	f, err := os.Open(name)
	if err != nil {
		return remit.Secret{}, fmt.Errorf("read secret: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return remit.Secret{}, fmt.Errorf("read secret: %w", err)
	}
	//remit:guard S7 TestSecretRef
	if info.Mode().Perm()&0o027 != 0 || !info.Mode().IsRegular() {
		return remit.Secret{}, fmt.Errorf("read secret: others can read %s, or it is no file: chmod 600 or 640", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return remit.Secret{}, fmt.Errorf("read secret: %w", err)
	}
	if len(b) > maxSecretBytes {
		return remit.Secret{}, fmt.Errorf("read secret: %s has more than %d bytes", name, maxSecretBytes)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return remit.Secret{}, fmt.Errorf("read secret: %s is empty", name)
	}
	return remit.NewSecret(s), nil
}
