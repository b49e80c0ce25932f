// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// show prints v as JSON, or calls table, of which no control character reaches the terminal (S39).
func (a *app) show(v any, table func()) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	out := a.out
	defer func() { a.out = out }()
	//remit:guard S39 TestAgentsWordsCannotDrawOnTheTerminal
	a.out = printable{out}
	table()
	return nil
}

// printable replaces control characters but for tab and newline, and what changes the direction of text.
type printable struct{ w io.Writer }

// Write takes whole characters.
func (p printable) Write(b []byte) (int, error) {
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		cells := strings.Split(line, "\t")
		for j, cell := range cells {
			if cell != "" {
				cells[j] = clean(cell)
			}
		}
		lines[i] = strings.Join(cells, "\t")
	}
	if _, err := io.WriteString(p.w, strings.Join(lines, "\n")); err != nil {
		return 0, err
	}
	return len(b), nil
}

// table prints rows under a head. Control characters in values are escaped: what an agent wrote cannot draw on the terminal.
func (a *app) table(head string, rows [][]string) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i, cell := range r {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, clean(cell))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
}

// fields prints name and value pairs, leaving out the empty ones.
func (a *app) fields(pairs ...string) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", pairs[i], clean(pairs[i+1]))
		}
	}
	_ = w.Flush()
}

// clean escapes what is not printable.
func clean(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return '�'
		}
		return r
	}, s)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
