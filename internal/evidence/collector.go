// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"remit"
)

// Defaults of Config.
const (
	DefaultTimeout     = 2 * time.Second
	DefaultMaxParallel = 32
)

// Config is what a Collector needs.
type Config struct {
	Sources     map[string]Source // by the name that workflows use
	Timeout     time.Duration     // for all needs of one request together; 0: DefaultTimeout
	MaxParallel int               // questions that one source may have open at once; 0: DefaultMaxParallel
}

// Collector asks the sources of one configuration revision for all needs of a request at once. It is safe for concurrent
// use; a new revision gets a new Collector, so that no signer list outlives its configuration.
type Collector struct {
	timeout time.Duration
	sources map[string]*slot
	asking  sync.WaitGroup
}

// slot is one source with its own bound, so that a source that hangs takes nothing from the others.
type slot struct {
	source  Source
	adder   Adder   // nil: takes no statements
	fresher Fresher // nil: its facts change only by statements
	open    chan struct{}
}

// New checks the configuration.
func New(cfg Config) (*Collector, error) {
	if cfg.Timeout < 0 || cfg.MaxParallel < 0 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "evidence: timeout and parallelism are not negative"}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.MaxParallel == 0 {
		cfg.MaxParallel = DefaultMaxParallel
	}
	c := &Collector{timeout: cfg.Timeout, sources: make(map[string]*slot, len(cfg.Sources))}
	for name, source := range cfg.Sources {
		if source == nil {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("evidence source %q is nil", name)}
		}
		s := &slot{source: source, open: make(chan struct{}, cfg.MaxParallel)}
		s.adder, _ = source.(Adder)
		s.fresher, _ = source.(Fresher)
		c.sources[name] = s
	}
	return c, nil
}

// Collect answers every need, in order, within the timeout or the context's deadline, whichever comes first. A source that
// has not answered by then is evidence_unavailable, even if it ignores its context.
func (c *Collector) Collect(ctx context.Context, needs []remit.Need, req *remit.Request) []remit.Found {
	if len(needs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answers := make([]chan answer, len(needs))
	for i := range needs {
		answers[i] = c.ask(ctx, needs[i], req)
	}
	found := make([]remit.Found, len(needs))
	for i, need := range needs {
		found[i] = wait(ctx, need, answers[i])
	}
	return found
}

// Close waits until no source is working for this Collector any more, or until ctx ends. Call it when the revision that
// this Collector belongs to is no longer used.
func (c *Collector) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() { c.asking.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for evidence sources: %w", ctx.Err())
	}
}

// Add hands a statement to a source; see Adder.
func (c *Collector) Add(ctx context.Context, source string, envelope []byte, by string, at time.Time) (Added, error) {
	adder, err := c.adder(source)
	if err != nil {
		return Added{}, err
	}
	return adder.Add(ctx, envelope, by, at)
}

// Read judges a stored statement by its source; see Adder.
func (c *Collector) Read(row *remit.Statement) (*remit.Evidence, error) {
	adder, err := c.adder(row.Source)
	if err != nil {
		return nil, err
	}
	return adder.Read(row)
}

func (c *Collector) adder(source string) (Adder, error) {
	s, ok := c.sources[source]
	if !ok {
		return nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no evidence source %.80q", source),
			Hint: "name an EvidenceSource of the active configuration"}
	}
	if s.adder == nil {
		return nil, &remit.Error{Code: remit.CodeInvalid,
			Msg: fmt.Sprintf("evidence source %q takes no statements: it is read when a request needs it", source)}
	}
	return s.adder, nil
}

type answer struct {
	evidence *remit.Evidence
	reason   *remit.Reason
}

// ask starts one question. The channel has room for the answer, so a late source is not blocked by nobody reading.
func (c *Collector) ask(ctx context.Context, need remit.Need, req *remit.Request) chan answer {
	out := make(chan answer, 1)
	if need.Kind == remit.EvidenceApproval {
		out <- answer{reason: &remit.Reason{Code: remit.ReasonApproval}}
		return out
	}
	s, ok := c.sources[need.Source]
	if !ok {
		out <- answer{reason: &remit.Reason{Code: remit.ReasonEvidenceMissing, Want: "source " + need.Source, Got: "no such source is configured"}}
		return out
	}
	private := *req // a source that outlives the request must not see the caller's copy change
	c.start(ctx, s, out, need, func() answer {
		e, reason := s.source.Find(ctx, need, &private)
		return answer{e, reason}
	})
	return out
}

// Fresh asks the sources whose facts can change by themselves whether those that were found still hold, all at once and
// within the timeout, as Collect does. What does not hold any more has a reason in now, and ok is false.
func (c *Collector) Fresh(ctx context.Context, found []remit.Found) (now []remit.Found, ok bool) {
	if now, ok = found, true; len(found) == 0 {
		return now, ok
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answers := make([]chan answer, len(found))
	for i := range found {
		e, s := found[i].Evidence, c.sources[found[i].Need.Source]
		if e == nil || s == nil || s.fresher == nil {
			continue
		}
		out := make(chan answer, 1)
		c.start(ctx, s, out, found[i].Need, func() answer { return answer{e, s.fresher.Fresh(ctx, e)} })
		answers[i] = out
	}
	for i := range answers {
		if answers[i] == nil {
			continue
		}
		if f := wait(ctx, found[i].Need, answers[i]); f.Reason != nil {
			if ok {
				now, ok = slices.Clone(found), false
			}
			now[i] = f
		}
	}
	return now, ok
}

// start puts a question to a source when it has room; out, which has room for the answer, gets it. Without room in time nobody
// answers, and wait says so.
func (c *Collector) start(ctx context.Context, s *slot, out chan answer, need remit.Need, question func() answer) {
	c.asking.Go(func() {
		select {
		case s.open <- struct{}{}:
			defer func() { <-s.open }()
			out <- checked(need, question)
		case <-ctx.Done(): // wait answers
		}
	})
}

func wait(ctx context.Context, need remit.Need, from chan answer) remit.Found {
	var a answer
	select {
	case a = <-from:
	default:
		select {
		case a = <-from:
		case <-ctx.Done():
			a.reason = &remit.Reason{Code: remit.ReasonEvidenceSource, Want: "source " + need.Source, Got: "no answer in time"}
		}
	}
	if a.reason != nil {
		a.evidence = nil
		if a.reason.Of == "" {
			a.reason.Of = "evidence." + string(need.Kind)
		}
	}
	return remit.Found{Need: need, Evidence: a.evidence, Reason: a.reason}
}

// checked asks and holds the source to its contract: a fact of another kind or source, no answer, or a panic is a fault, and a
// fault is a denial.
func checked(need remit.Need, question func() answer) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			a = answer{reason: &remit.Reason{Code: remit.ReasonFault, Got: fmt.Sprintf("source %s: %v", need.Source, p)}}
		}
	}()
	a = question()
	switch e := a.evidence; {
	case a.reason != nil:
	//remit:guard S14 TestCollectDenies
	case e == nil || e.Kind != need.Kind || e.Source != need.Source:
		a.reason = &remit.Reason{Code: remit.ReasonFault, Got: "source " + need.Source + " answered another question"}
	}
	return a
}
