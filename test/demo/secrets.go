// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// secrets looks for every credential that the story was given, in each form in which it could have been written, in everything
// below the story's folder (store, write-ahead log, ledger, logs) and in argv and environment of the servers.
func (s *story) secrets(context.Context) error {
	s.ask("every minted credential: raw, percent-encoded, in base64; in store, ledger, logs, argv and environment")
	if len(s.minted) == 0 {
		return errors.New("no credential was minted to look for")
	}
	places := map[string]string{}
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(path, s.path("bin")) {
			places[strings.TrimPrefix(path, s.dir)] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, pid := range s.pids {
		for _, file := range []string{"cmdline", "environ"} {
			name := fmt.Sprintf("/proc/%d/%s", pid, file)
			places[name] = name
		}
	}
	searched := 0
	for name, path := range places {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("search %s: %w", name, err)
		}
		searched += len(b)
		for _, secret := range s.minted {
			if form := written(b, secret); form != "" {
				return fmt.Errorf("a minted credential stands in %s (%s)", name, form)
			}
		}
	}
	for _, must := range []string{"/remit/state.db", "/remit/state.db-wal", "/remit/ledger/checkpoint"} {
		if _, ok := places[must]; !ok {
			return fmt.Errorf("%s was not searched", must)
		}
	}
	s.told("%s", fmt.Sprintf("none of %d credentials stands in %d files of %d MB", len(s.minted), len(places), searched>>20), 0)
	return nil
}

// written names the form in which a secret stands in b; empty when it does not.
func written(b []byte, secret string) string {
	for form, text := range map[string]string{"raw": secret, "percent-encoded": url.QueryEscape(secret), "its signature": secret[strings.LastIndexByte(secret, '.')+1:]} {
		if bytes.Contains(b, []byte(text)) {
			return form
		}
	}
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		for form, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			if bytes.Contains(b, []byte(text[4:len(text)-4])) { // without what depends on the neighbours
				return form
			}
		}
	}
	return ""
}
