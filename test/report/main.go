// SPDX-License-Identifier: Apache-2.0

// Command report reads `go test -json`, prints one line a package and everything about what failed, and fails when a test
// failed, when a package did not build, or when a test was skipped that the list of skips does not name.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of test2json's output.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// report counts what was run.
type report struct {
	output                  map[string]*strings.Builder // by package and test
	passed, failed, skipped int
	bad                     []string
	allowed                 []string
}

func main() {
	list := flag.String("skips", "", "file with the tests that may be skipped")
	short := flag.Bool("short", false, "whether lines whose reason begins with SHORT=1 count")
	flag.Parse()
	r := report{output: map[string]*strings.Builder{}}
	if err := r.readSkips(*list, *short); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(2)
	}
	r.read(os.Stdin)
	for _, b := range r.bad {
		fmt.Println(b)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if len(r.bad) > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

func (r *report) readSkips(file string, short bool) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(line, "#") || strings.HasPrefix(f[1], "SHORT=1") && !short {
			continue
		}
		r.allowed = append(r.allowed, f[0])
	}
	return nil
}

func (r *report) mayskip(name string) bool {
	for _, a := range r.allowed {
		if prefix, ok := strings.CutSuffix(a, "*"); a == name || ok && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func (r *report) read(in io.Reader) {
	scan := bufio.NewScanner(in)
	scan.Buffer(make([]byte, 1<<20), 16<<20)
	for scan.Scan() {
		var e event
		if json.Unmarshal(scan.Bytes(), &e) != nil {
			fmt.Println(scan.Text())
			continue
		}
		r.take(e)
	}
}

func (r *report) take(e event) {
	name := e.Package + "/" + e.Test
	switch e.Action {
	case "output", "build-output":
		if r.output[name] == nil {
			r.output[name] = &strings.Builder{}
		}
		r.output[name].WriteString(e.Output)
		if e.Action == "build-output" {
			fmt.Print(e.Output)
		}
	case "pass":
		if e.Test == "" {
			fmt.Printf("ok    %-50s %7.1f s\n", e.Package, e.Elapsed)
		} else {
			r.passed++
		}
	case "fail":
		r.bad = append(r.bad, fmt.Sprintf("FAIL  %s", strings.TrimSuffix(name, "/")))
		r.failed++
		fmt.Printf("FAIL  %s\n%s", name, r.text(name))
	case "skip":
		if e.Test == "" {
			return // no test files
		}
		r.skipped++
		fmt.Printf("skip  %s\n%s", name, r.text(name))
		if !r.mayskip(name) {
			r.bad = append(r.bad, "SKIP  "+name+" is not listed in test/skips.txt")
		}
	}
	if e.Action == "pass" || e.Action == "skip" {
		delete(r.output, name)
	}
}

func (r *report) text(name string) string {
	if b := r.output[name]; b != nil {
		return b.String()
	}
	return ""
}
