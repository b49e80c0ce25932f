// SPDX-License-Identifier: Apache-2.0

package story

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Search looks for secrets, in each form in which one could have been written, in everything below the story's folder (store, write-ahead
// log, ledger, logs) but programs and the files where they are kept, and in argv and environment of the servers.
func (s *Story) Search(secrets []string, kept ...string) error {
	s.Ask("every secret: raw, percent-encoded, in base64; in store, ledger, logs, argv and environment")
	if len(secrets) == 0 {
		return errors.New("there is no secret to look for")
	}
	places := map[string]string{}
	var own syscall.Stat_t
	if err := syscall.Stat(s.Dir, &own); err != nil {
		return err
	}
	err := filepath.WalkDir(s.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !mounted(path, own.Dev) && !strings.HasPrefix(path, s.Path("bin")) && !slices.Contains(kept, path) {
			places[strings.TrimPrefix(path, s.Dir)] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, pid := range s.PIDs {
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
		for _, secret := range secrets {
			if form := written(b, secret); form != "" {
				return fmt.Errorf("a secret stands in %s (%s)", name, form)
			}
		}
	}
	for _, must := range []string{"/remit/state.db", "/remit/state.db-wal", "/remit/ledger/checkpoint"} {
		if _, ok := places[must]; !ok {
			return fmt.Errorf("%s was not searched", must)
		}
	}
	s.Told("%s", fmt.Sprintf("none of %d secrets stands in %d files of %d MB", len(secrets), len(places), searched>>20), 0)
	return nil
}

// mounted reports whether something is mounted over a file, such as a namespace: that is nothing that was written.
func mounted(path string, dir uint64) bool {
	var st syscall.Stat_t
	return syscall.Stat(path, &st) == nil && st.Dev != dir
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
