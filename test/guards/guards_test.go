// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// plant writes a module whose guards the tests hold, do not hold, or hold by hanging.
func plant(t *testing.T, files map[string]string) (string, []*source, []mark) {
	t.Helper()
	root := t.TempDir()
	files["go.mod"] = "module planted\n\ngo 1.24\n"
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := collect(root)
	if err != nil {
		t.Fatal(err)
	}
	var marks []mark
	for _, s := range sources {
		marks = append(marks, s.marks...)
	}
	return root, sources, marks
}

const door = `package door

import "errors"

var closed int

type lock struct{ Most int }

func Open(who string, n int) error {
	//remit:guard S1 TestStranger
	if who != "me" {
		return errors.New("stranger")
	}
	//remit:guard S2 TestUnheld
	if n > 3 {
		return errors.New("too many")
	}
	switch {
	//remit:guard S3 TestNegative,TestVeryNegative
	case n < 0, n < -10:
		return errors.New("negative")
	}
	//remit:guard S4 TestCloses
	closed++
	//remit:guard S5 TestSkipped
	//remit:guard S6 TestBroken
	for n > 100 {
		n--
	}
	l := lock{
		//remit:guard S7 TestHangs
		Most: n,
	}
	for l.Most == 0 {
	}
	return nil
}
`

const doorTest = `package door

import "testing"

func TestStranger(t *testing.T) {
	if Open("you", 1) == nil {
		t.Fatal("open")
	}
}
func TestUnheld(t *testing.T)   { _ = Open("me", 9) }
func TestNegative(t *testing.T) {
	if Open("me", -1) == nil {
		t.Fatal("open")
	}
}
func TestVeryNegative(t *testing.T) { TestNegative(t) }
func TestCloses(t *testing.T) {
	if _ = Open("me", 1); closed == 0 {
		t.Fatal("not closed")
	}
}
func TestSkipped(t *testing.T) { t.Skip("no cluster here") }
func TestBroken(t *testing.T)  { t.Fatal("broken anyway") }
func TestHangs(t *testing.T)   { _ = Open("me", 1) }
`

func TestVerdicts(t *testing.T) {
	root, sources, marks := plant(t, map[string]string{"door/door.go": door, "door/door_test.go": doorTest})
	w, err := newWorkshop(root, sources)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"S1": "red", "S2": "GREEN", "S3": "red", "S4": "red", "S5": "not run", "S6": "FAULT", "S7": "FAULT"}
	if len(marks) != len(want) {
		t.Fatalf("%d marks found, want %d", len(marks), len(want))
	}
	whole := map[string]verdict{}
	for i := range marks {
		o := options{timeout: time.Minute}
		if marks[i].Rule == "S7" {
			o.timeout = 2 * time.Second
		}
		if v := w.judge(context.Background(), &marks[i], o, whole); v.word != want[marks[i].Rule] {
			t.Errorf("%s: %s, want %s: %s", marks[i].Rule, v.word, want[marks[i].Rule], v.detail)
		}
	}
	if marks[0].Func != "Open" || marks[0].Dir != "door" {
		t.Errorf("the first mark is in %s of %s", marks[0].Func, marks[0].Dir)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "door/door.go")); string(b) != door {
		t.Error("the tree was changed")
	}
}

// TestBadMarks: a mark that guards nothing, or that cannot be switched off, is an error and not silence.
func TestBadMarks(t *testing.T) {
	for name, body := range map[string]string{
		"no test":      "//remit:guard S1\n\tif true {\n\t}",
		"no rule":      "//remit:guard TestX\n\tif true {\n\t}",
		"no statement": "//remit:guard S1 TestX\n\n\tif true {\n\t}",
		"definition":   "//remit:guard S1 TestX\n\tx := 1\n\t_ = x",
		"value switch": "switch 1 {\n\t//remit:guard S1 TestX\n\tcase 1:\n\t}",
	} {
		if _, err := readSource("x.go", []byte("package x\n\nfunc f() {\n\t"+body+"\n}\n")); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestCheck: a lost mark, a mark without its row, a test that is gone and a rule without guards are all named.
func TestCheck(t *testing.T) {
	model := "| rule | guard |\n|---|---|\n| S1 doors | closed |\n| S9 walls | thick |\n\n" + tableStart + tableEnd
	root, _, marks := plant(t, map[string]string{"door/door.go": door, "door/door_test.go": doorTest, modelFile: model})
	if err := write(root, marks, false); err != nil {
		t.Fatal(err)
	}
	if bad := check(root, marks, false); len(bad) != 1 || !strings.Contains(bad[0], "claims S9") {
		t.Errorf("a current table: %q", bad)
	}
	if err := write(root, marks[1:], false); err == nil {
		t.Error("the table shrank unasked")
	}
	bad := strings.Join(check(root, marks[1:], true), "\n")
	if !strings.Contains(bad, "lost its mark: | S1 ") || !strings.Contains(bad, "claims S1,") {
		t.Errorf("a lost mark: %s", bad)
	}
	more := append(slices.Clone(marks), mark{Rule: "S9", Tests: []string{"TestGone"}, Dir: "door", File: "door/door.go", Func: "Open"})
	bad = strings.Join(check(root, more, false), "\n")
	if !strings.Contains(bad, "not in THREAT_MODEL.md: | S9 ") || !strings.Contains(bad, "has no test TestGone") {
		t.Errorf("a new mark: %s", bad)
	}
}

// TestParts: every guard is in exactly one part.
func TestParts(t *testing.T) {
	_, _, marks := plant(t, map[string]string{"door/door.go": door, "door/door_test.go": doorTest})
	seen := 0
	for _, part := range []string{"1/3", "2/3", "3/3"} {
		got, err := choose(context.Background(), marks, options{part: part})
		if err != nil {
			t.Fatal(err)
		}
		seen += len(got)
	}
	if seen != len(marks) {
		t.Errorf("the parts hold %d of %d guards", seen, len(marks))
	}
	for _, bad := range []string{"0/3", "4/3", "x", "1/0", "commit/0"} {
		if _, err := choose(context.Background(), marks, options{part: bad}); err == nil {
			t.Errorf("part %q was taken", bad)
		}
	}
}
