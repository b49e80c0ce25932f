// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// trace is one recorded run of an agent.
type trace struct {
	Suite  string `json:"suite"`
	Run    string `json:"run"`
	Model  string `json:"model"`
	Task   string `json:"task"`
	Prompt string `json:"prompt"`
	// Injection and Attack are the attacker's goal and technique; "" in an honest run.
	Injection string `json:"injection_task"`
	Attack    string `json:"attack"`
	Utility   bool   `json:"utility"`
	Succeeded bool   `json:"attack_succeeded"`
	Calls     []call `json:"calls"`
	// The indices of calls without which the attack, or the user's task, comes to nothing; nil: nobody has found out.
	ForAttack  []int `json:"necessary_for_attack"`
	ForUtility []int `json:"necessary_for_utility"`
	TextOnly   bool  `json:"text_only_attack"`
}

// call is one call of a tool, as the model wrote it.
type call struct {
	Tool   string          `json:"tool"`
	Args   json.RawMessage `json:"args"`
	Output *int            `json:"output"` // nil: no answer is on record
	Error  string          `json:"error"`
}

func (t *trace) attacked() bool { return t.Injection != "" }

// flood reports whether the attack only wanted the agent to stop.
func (t *trace) flood() bool { return strings.Contains(t.Attack, "dos") }

// labelled reports whether somebody found out which calls were necessary.
func (t *trace) labelled() bool { return t.ForAttack != nil }

// folder is a folder of recorded runs: SUITE.jsonl.gz, SUITE.outputs.jsonl.gz, tools.json and tasks.jsonl; each .jsonl may be
// compressed or not.
type folder struct {
	tools   map[string][]tool // by suite
	traces  map[string][]*trace
	outputs map[string]map[int]string
}

// openFolder reads all of it. Only where no run of a task says what the user asked for is that read from tasks.jsonl.
func openFolder(dir string) (*folder, error) {
	f := &folder{traces: map[string][]*trace{}, outputs: map[string]map[int]string{}}
	b, err := os.ReadFile(filepath.Join(dir, "tools.json")) //nolint:gosec // the folder that was asked for
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &f.tools); err != nil {
		return nil, fmt.Errorf("read tools.json: %w", err)
	}
	for _, suite := range f.suites() {
		if err := f.readSuite(dir, suite); err != nil {
			return nil, fmt.Errorf("read %s: %w", suite, err)
		}
	}
	return f, f.fillPrompts(dir)
}

func (f *folder) suites() []string { return slices.Sorted(maps.Keys(f.tools)) }

func (f *folder) readSuite(dir, suite string) error {
	err := lines(dir, suite+".jsonl", func(b []byte) error {
		var t trace
		if err := json.Unmarshal(b, &t); err != nil {
			return err
		}
		f.traces[suite] = append(f.traces[suite], &t)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // tools of a suite without runs
	}
	if err != nil {
		return err
	}
	f.outputs[suite] = map[int]string{}
	return lines(dir, suite+".outputs.jsonl", func(b []byte) error {
		var id int
		var text string
		if err := json.Unmarshal(b, &[]any{&id, &text}); err != nil {
			return err
		}
		f.outputs[suite][id] = text
		return nil
	})
}

// fillPrompts gives runs that lack the prompt that of another run of their task.
func (f *folder) fillPrompts(dir string) error {
	known, missing := map[[2]string]string{}, false
	for _, t := range f.all() {
		if k := [2]string{t.Suite, t.Task}; t.Prompt != "" && known[k] == "" {
			known[k] = t.Prompt
		}
	}
	for _, t := range f.all() {
		missing = missing || known[[2]string{t.Suite, t.Task}] == ""
	}
	if missing {
		err := lines(dir, "tasks.jsonl", func(b []byte) error {
			var t struct{ Suite, ID, Prompt string }
			if err := json.Unmarshal(b, &t); err != nil {
				return err
			}
			if k := [2]string{t.Suite, t.ID}; known[k] == "" {
				known[k] = t.Prompt
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read tasks.jsonl: %w", err)
		}
	}
	for _, t := range f.all() {
		t.Prompt = cmp.Or(t.Prompt, known[[2]string{t.Suite, t.Task}])
	}
	return nil
}

func (f *folder) all() (out []*trace) {
	for _, s := range f.suites() {
		out = append(out, f.traces[s]...)
	}
	return out
}

// lines calls do for each line of a file, which may be compressed.
func lines(dir, name string, do func([]byte) error) error {
	var r io.Reader
	file, err := os.Open(filepath.Join(dir, name)) //nolint:gosec // the folder that was asked for
	if errors.Is(err, fs.ErrNotExist) {
		file, err = os.Open(filepath.Join(dir, name+".gz")) //nolint:gosec // the same
	}
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it was only read
	if r = file; strings.HasSuffix(file.Name(), ".gz") {
		if r, err = gzip.NewReader(file); err != nil {
			return err
		}
	}
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 64<<20)
	for n := 1; scan.Scan(); n++ {
		if len(bytes.TrimSpace(scan.Bytes())) == 0 {
			continue
		}
		if err := do(scan.Bytes()); err != nil {
			return fmt.Errorf("%s line %d: %w", name, n, err)
		}
	}
	return scan.Err()
}

var lastNumber = regexp.MustCompile(`[0-9]+$`)

// parts splits the tasks of each suite, in the order of their numbers, by turns: which of n parts each task is in.
func (f *folder) parts(n int) map[[2]string]int {
	out := map[[2]string]int{}
	for suite, traces := range f.traces {
		var tasks []string
		for _, t := range traces {
			tasks = append(tasks, t.Task)
		}
		slices.SortFunc(tasks, func(a, b string) int {
			x, _ := strconv.Atoi(lastNumber.FindString(a))
			y, _ := strconv.Atoi(lastNumber.FindString(b))
			return cmp.Or(cmp.Compare(x, y), cmp.Compare(a, b))
		})
		for i, t := range slices.Compact(tasks) {
			out[[2]string{suite, t}] = i % n
		}
	}
	return out
}
