// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// played is a recorded run as it went through the gateway.
type played struct {
	*trace
	denied []string // by call: why it was denied, "" when it was allowed
	took   []time.Duration
}

// stopped reports whether one of the calls was denied.
func (p *played) stopped(calls []int) bool {
	return slices.ContainsFunc(calls, func(i int) bool { return p.denied[i] != "" })
}

// clean reports whether nothing at all was denied.
func (p *played) clean() bool {
	return !slices.ContainsFunc(p.denied, func(why string) bool { return why != "" })
}

// replay plays recorded runs: each in a run of its own of the workflow that was written for its task.
type replay struct {
	house   *house
	stubs   map[string]*stub
	outputs map[string]map[int]string
	names   map[taskKey]string // of workflows
	workers int
}

// taskKey is one task in one wording.
type taskKey struct{ suite, task, prompt string }

// play plays all traces, several at a time.
func (r *replay) play(ctx context.Context, traces []*trace) ([]*played, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := make([]*played, len(traces))
	next := make(chan int)
	var wg sync.WaitGroup
	for range r.workers {
		wg.Go(func() {
			for i := range next {
				var err error
				if out[i], err = r.patiently(ctx, traces[i]); err != nil {
					cancel(fmt.Errorf("replay %s: %w", traces[i].Run, err))
					return
				}
			}
		})
	}
	for i := range traces {
		select {
		case next <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	wg.Wait()
	return out, context.Cause(ctx)
}

// patiently plays a trace again, in a new run, where the machine was too slow for the server to answer.
func (r *replay) patiently(ctx context.Context, t *trace) (p *played, err error) {
	for range 4 {
		if p, err = r.one(ctx, t); err == nil || errors.Is(err, errCame) || ctx.Err() != nil {
			return p, err
		}
	}
	return p, err
}

func (r *replay) one(ctx context.Context, t *trace) (p *played, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s, run, err := r.house.enter(ctx, r.names[taskKey{t.Suite, t.Task, t.Prompt}], label(t.Suite))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close(), r.house.leave(ctx, run)) }()
	p = &played{trace: t}
	for i := range t.Calls {
		why, took, err := r.call(ctx, s, t, &t.Calls[i])
		if err != nil {
			return nil, fmt.Errorf("call %d, %s: %w", i, t.Calls[i].Tool, err)
		}
		p.denied = append(p.denied, why)
		p.took = append(p.took, took)
	}
	return p, nil
}

// call makes one recorded call and returns why it was denied.
func (r *replay) call(ctx context.Context, s *sdk.ClientSession, t *trace, c *call) (why string, took time.Duration, err error) {
	key, err := callKey(c.Tool, c.Args)
	if err != nil {
		return "", 0, err
	}
	text := c.Error
	if c.Output != nil && c.Error == "" {
		text = undelimited(r.outputs[t.Suite][*c.Output])
	}
	done := r.stubs[t.Suite].announce(key, text, c.Error != "")
	began := time.Now()
	result, err := s.CallTool(ctx, &sdk.CallToolParams{Name: c.Tool, Arguments: c.Args})
	took = time.Since(began)
	came := done()
	var refused *jsonrpc.Error
	switch {
	case errors.As(err, &refused):
		why = cmp.Or(refused.Message, "refused") // no such tool, or arguments that are none
	case err != nil:
		return "", took, err
	default:
		why = denial(result)
	}
	return why, took, consistent(why, came)
}

// errCame is never tried again.
var errCame = errors.New("what was allowed and what came to the tool differ")

// consistent: a call that was allowed came to the tool once, one that was denied did not.
func consistent(why string, came int) error {
	if came != 1 && why == "" || came != 0 && why != "" {
		return fmt.Errorf("%w: denied %q, and it came %d times", errCame, why, came)
	}
	return nil
}

// undelimited takes away what a recorded run's own defence put round what the tool had returned.
func undelimited(text string) string {
	if inner, ok := strings.CutPrefix(text, "<<"); ok && strings.HasSuffix(inner, ">>") {
		return strings.TrimSuffix(inner, ">>")
	}
	return text
}

// denial is the reason of a denial; "" for what the tool itself answered.
func denial(r *sdk.CallToolResult) string {
	d, ok := r.Meta["remit.internal/denial"]
	if !ok {
		return ""
	}
	b, err := json.Marshal(d)
	if err != nil {
		return "denied"
	}
	return string(b)
}

// toolFile declares the suite's server to Remit.
func (s *stub) toolFile(dir, suite string) (string, error) {
	ca := filepath.Join(dir, suite+".pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		return "", err
	}
	return fmt.Sprintf("kind: Tool\nname: %s\nserver: {url: %q, ca: %s}\n", suite, s.URL, ca), nil
}

// interleave orders traces so that the same task does not come twice in a row: such runs make the same calls, and would wait for
// each other.
func interleave(traces []*trace) []*trace {
	byTask := map[string][]*trace{}
	var tasks []string
	for _, t := range traces {
		k := t.Suite + "/" + t.Task
		if byTask[k] == nil {
			tasks = append(tasks, k)
		}
		byTask[k] = append(byTask[k], t)
	}
	slices.SortFunc(tasks, strings.Compare)
	out := make([]*trace, 0, len(traces))
	for i := 0; len(out) < len(traces); i++ {
		for _, k := range tasks {
			if i < len(byTask[k]) {
				out = append(out, byTask[k][i])
			}
		}
	}
	return out
}
