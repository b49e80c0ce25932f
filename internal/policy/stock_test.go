// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// stockOPA returns the path of an opa binary of the version that we embed: $OPA, or built from the module cache.
func stockOPA(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("OPA"); path != "" {
		return path
	}
	if testing.Short() || os.Getenv("SHORT") != "" {
		t.Skip("SHORT leaves out building the opa binary")
	}
	const module = "github.com/open-policy-agent/opa"
	version, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	build := exec.Command("go", "install", module+"@"+strings.TrimSpace(string(version)))
	build.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-mod=mod")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("the opa binary cannot be built here: %v: %s", err, out)
	}
	return filepath.Join(dir, "opa")
}

// TestStockOPA has the real opa judge a few hundred recorded decisions by the exported files, in one call for each revision.
func TestStockOPA(t *testing.T) {
	opa := stockOPA(t)
	for seed := range uint64(4) {
		w := newWorld(seed, seed%2 == 0)
		plan := mustCompile(t, w.cfg)
		dir := t.TempDir()
		for name, text := range plan.Export() {
			path := filepath.Join(dir, "policy", name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var inputs []json.RawMessage
		var want []string
		for range 100 {
			d := w.ask().decide(t, plan)
			d = roundTrip(t, &d)
			parent, ok := w.parents[d.Under]
			input, err := Input(&d, &parent)
			if !ok {
				input, err = Input(&d, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			inputs, want = append(inputs, input), append(want, recorded(&d).String())
		}
		b, _ := json.Marshal(map[string]any{"inputs": inputs})
		data := filepath.Join(dir, "inputs.json")
		if err := os.WriteFile(data, b, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(opa, "eval", "--strict-builtin-errors", "-f", "values", "-d", filepath.Join(dir, "policy"), "-d", data, //nolint:gosec // a test
			"[d | some i in data.inputs; d := data.remit.decision with input as i]")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("opa eval: %v\n%s%s", err, out, stderr.Bytes())
		}
		var got [][]answer
		if err := json.Unmarshal(out, &got); err != nil || len(got) != 1 || len(got[0]) != len(want) {
			t.Fatalf("opa eval answered %.300s (%v)", out, err)
		}
		for i := range want {
			if got[0][i].String() != want[i] {
				t.Errorf("seed %d, decision %d: plan %s, opa %s\n%s", seed, i, want[i], got[0][i], inputs[i])
			}
		}
	}
}
