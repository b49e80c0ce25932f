// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The generated table stands between these lines of THREAT_MODEL.md.
const (
	modelFile  = "THREAT_MODEL.md"
	tableStart = "<!-- guards: written by `go run ./test/guards -write` -->\n"
	tableEnd   = "<!-- guards: end -->\n"
)

// claimed matches a row of the hand-written table of rules.
var claimed = regexp.MustCompile(`(?m)^\| (S[0-9]+) [^|]*\|`)

// rows returns the table's lines, one for each rule, function and list of tests.
func rows(marks []mark) []string {
	sorted := slices.Clone(marks)
	slices.SortStableFunc(sorted, func(a, b mark) int {
		return cmp.Or(cmp.Compare(a.number(), b.number()), cmp.Compare(a.where(), b.where()), cmp.Compare(a.Line, b.Line))
	})
	var out []string
	for _, m := range sorted {
		dir := ""
		if m.Dir != filepath.ToSlash(filepath.Dir(m.File)) {
			dir = m.Dir + ": "
		}
		row := fmt.Sprintf("| %s | `%s` | %s`%s` |", m.Rule, m.where(), dir, strings.Join(m.Tests, "`, `"))
		if !slices.Contains(out, row) {
			out = append(out, row)
		}
	}
	return out
}

// readModel splits the threat model around the generated rows.
func readModel(root string) (before string, have []string, after string, err error) {
	b, err := os.ReadFile(filepath.Join(root, modelFile))
	if err != nil {
		return "", nil, "", err
	}
	before, rest, ok := strings.Cut(string(b), tableStart)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", nil, "", fmt.Errorf("%s has no place for the table: it stands between %q and %q", modelFile, tableStart, tableEnd)
	}
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "| S") {
			have = append(have, strings.TrimSuffix(line, "\n"))
		}
	}
	return before, have, after, nil
}

// lost returns rows that stand in the table and have no mark any more.
func lost(have, want []string) []string {
	return slices.DeleteFunc(slices.Clone(have), func(r string) bool { return slices.Contains(want, r) })
}

// write brings the table up to date. A guard that is gone is named, and kept out only on purpose.
func write(root string, marks []mark, fewer bool) error {
	before, have, after, err := readModel(root)
	if err != nil {
		return err
	}
	want := rows(marks)
	if gone := lost(have, want); len(gone) > 0 {
		fmt.Printf("no mark any more for:\n%s\n", strings.Join(gone, "\n"))
		if len(want) < len(have) && !fewer {
			return fmt.Errorf("the table would shrink from %d to %d guards: put the marks back, or say -fewer", len(have), len(want))
		}
	}
	table := "| rule | guard | tests that fail without it |\n|---|---|---|\n" + strings.Join(want, "\n") + "\n"
	return os.WriteFile(filepath.Join(root, modelFile), []byte(before+tableStart+table+tableEnd+after), 0o644)
}

// check says what is wrong with marks and table without running anything; with unlisted, a guard may be missing from the table.
func check(root string, marks []mark, unlisted bool) []string {
	before, have, _, err := readModel(root)
	if err != nil {
		return []string{err.Error()}
	}
	var bad []string
	want := rows(marks)
	for _, r := range lost(have, want) {
		bad = append(bad, "lost its mark: "+r)
	}
	for _, r := range lost(want, have) {
		if unlisted {
			break
		}
		bad = append(bad, "not in "+modelFile+": "+r)
	}
	for _, c := range claimed.FindAllStringSubmatch(before, -1) {
		if !slices.ContainsFunc(marks, func(m mark) bool { return m.Rule == c[1] }) {
			bad = append(bad, fmt.Sprintf("%s claims %s, and no guard of it is marked", modelFile, c[1]))
		}
	}
	tests := map[string]map[string]bool{}
	for _, m := range marks {
		if tests[m.Dir] == nil {
			tests[m.Dir] = testsOf(filepath.Join(root, m.Dir))
		}
		for _, name := range m.Tests {
			if top, _, _ := strings.Cut(name, "/"); !tests[m.Dir][top] {
				bad = append(bad, fmt.Sprintf("%s:%d: %s has no test %s", m.File, m.Line, m.Dir, top))
			}
		}
	}
	return bad
}

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]*)\(`)

func testsOf(dir string) map[string]bool {
	names := map[string]bool{}
	files, _ := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // then the tests count as missing
		}
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
	}
	return names
}
