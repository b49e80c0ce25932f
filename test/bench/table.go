// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// row is one line of the table.
type row struct {
	what   string
	ours   string
	theirs string  // of the peer in the same run; "" where there is none
	got    float64 // what the target is about: a ratio, or the figure itself
	want   float64 // 0: no target
	least  bool    // want is the least; else the most
	unit   string  // of got and want: "×", "ms" …
}

// table collects rows. It is not safe for concurrent use.
type table struct{ rows []row }

func (t *table) add(r row) { t.rows = append(t.rows, r) }

// missed says by which factor the target is missed; at most 1 is met.
func (r *row) missed() float64 {
	if r.least {
		return r.want / r.got
	}
	return r.got / r.want
}

func (r *row) target() (target, verdict string) {
	if r.want == 0 {
		return "", ""
	}
	sign := "≤"
	if r.least {
		sign = "≥"
	}
	verdict = "met"
	if r.missed() > 1 {
		verdict = "**missed**"
	}
	return sign + " " + figure(r.want) + " " + r.unit, verdict
}

func (t *table) print(w io.Writer) {
	cells := [][]string{{"what", "Remit", "beside it", "result", "target", ""}}
	for _, r := range t.rows {
		target, verdict := r.target()
		result := figure(r.got) + " " + r.unit
		if r.unit == "" {
			result = ""
		}
		cells = append(cells, []string{r.what, r.ours, r.theirs, result, target, verdict})
	}
	width := make([]int, len(cells[0]))
	for _, c := range cells {
		for i, s := range c {
			width[i] = max(width[i], len([]rune(s)))
		}
	}
	for n, c := range cells {
		for i, s := range c {
			fmt.Fprintf(w, "| %s%s ", s, strings.Repeat(" ", width[i]-len([]rune(s))))
		}
		fmt.Fprintln(w, "|")
		for i := range c {
			if n == 0 {
				fmt.Fprint(w, "|", strings.Repeat("-", width[i]+2))
			}
		}
		if n == 0 {
			fmt.Fprintln(w, "|")
		}
	}
}

// verdict is an error when a target is missed tenfold.
func (t *table) verdict() error {
	var errs []error
	for _, r := range t.rows {
		if r.want != 0 && r.missed() >= 10 {
			errs = append(errs, fmt.Errorf("%s: %s %s is ten times beyond its target", r.what, figure(r.got), r.unit))
		}
	}
	return errors.Join(errs...)
}

// figure prints three digits that count.
func figure(f float64) string {
	switch {
	case f >= 10000:
		return fmt.Sprintf("%.1fk", f/1000)
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

func median(f []float64) float64 {
	s := slices.Sorted(slices.Values(f))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// quantile is of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// machine describes where the figures come from.
func machine() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores for client and servers together, %s/%s, %s, %s", model, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH,
		runtime.Version(), time.Now().UTC().Format("2006-01-02 15:04 UTC"))
}

// load is the load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	first, _, ok := strings.Cut(string(b), " ")
	if err != nil || !ok {
		return "unknown"
	}
	return first
}
