// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit/internal/api"
)

// forms are the ways in which a secret could be written: as it is, percent-encoded, and in base64 at each alignment.
func forms(secret string) map[string]string {
	out := map[string]string{"raw": secret, "url": url.QueryEscape(secret), "signature": secret[strings.LastIndexByte(secret, '.')+1:]}
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			out[fmt.Sprintf("%s+%d", name, shift)] = text[4 : len(text)-4] // without what depends on the neighbours
		}
	}
	return out
}

// TestNoSecretIsWritten looks for a minted credential and a run token in everything that the server writes or shows.
func TestNoSecretIsWritten(t *testing.T) {
	c := theCluster(t)
	p := newProxy(t, c)
	i := install(t, through(c, p))
	proc, err := startProcess(i.path("serve.log"), nil, binary, "--dir", i.path("remit"), "serve", "--log-level", "debug")
	i.must(err)
	i.process = proc
	if !proc.isReady() {
		t.Fatal("not ready")
	}
	a, txn, run := i.readyAgent()
	got, err := a.grant(txn, nil)
	i.must(err)
	if got.Token == "" {
		t.Fatalf("not granted: %s", got)
	}
	i.must(i.applyGranted(c, got.Token))
	if ok, err := a.evaluate(txn); err != nil || !ok {
		t.Errorf("evaluate: %v %v", ok, err)
	}
	if no, err := a.grant(txn, map[string]any{"namespace": "kube-system"}); err != nil || !no.has("argument_mismatch") {
		t.Errorf("another namespace: %v %v", no, err)
	}
	places := i.places()
	if !bytes.Contains(bytes.Join(values(places), nil), []byte(got.Grant)) {
		t.Fatal("not even the grant's id is found: is this search any good?")
	}
	for what, secret := range map[string]string{"credential": got.Token, "run token": txn} {
		for form, text := range forms(secret) {
			for name, b := range places {
				if bytes.Contains(b, []byte(text)) {
					t.Errorf("the %s (%s) stands in %s", what, form, name)
				}
			}
		}
	}
	i.must(i.call("/v1/runs/"+run+"/finish", nil, nil))
	if ok, err := c.usable(got.Token, i.id); err != nil || ok {
		t.Errorf("the credential outlives its run: %v %v", ok, err)
	}
	i.must(i.call("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "the end"}, nil))
	i.agreesWithOPA()
	i.audit()
}

// places is everything below the installation's folder, and what the system shows of the process.
func (i *installation) places() map[string][]byte {
	i.t.Helper()
	out := map[string][]byte{}
	i.must(filepath.WalkDir(i.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "broker.kubeconfig" {
			return err
		}
		b, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, i.dir)] = b
		return err
	}))
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", i.process.cmd.Process.Pid, file))
		i.must(err)
		out["/proc/PID/"+file] = b
	}
	for _, must := range []string{"/remit/state.db", "/remit/state.db-wal", "/serve.log"} {
		if _, ok := out[must]; !ok {
			i.t.Errorf("%s was not searched", must)
		}
	}
	return out
}

func values(m map[string][]byte) (out [][]byte) {
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// TestForms sees to it that the search above finds what is there.
func TestForms(t *testing.T) {
	secret := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
	for _, hidden := range []string{"x" + secret, base64.StdEncoding.EncodeToString([]byte(`{"token":"` + secret + `"}`)),
		base64.URLEncoding.EncodeToString([]byte("Bearer " + secret)), "q=" + url.QueryEscape(secret)} {
		found := false
		for _, text := range forms(secret) {
			found = found || strings.Contains(hidden, text)
		}
		if !found {
			t.Errorf("not found in %s", hidden)
		}
	}
}
