// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"remit"
	"remit/internal/behaviour"
	"remit/internal/config"
	"remit/internal/signal"
)

// Signals tell receivers of findings and suspensions, and of decisions and credentials where they ask for it. The ledger is all that they read, each receiver from a position of its own that
// stands in the store: a restart repeats at most the last delivery, by the same id, and loses none. Each has its own goroutine, which
// holds one page of entries at a time; one that is dead or hangs holds up neither another nor anything on the line.
const (
	signalLimit   = 5 * time.Second // for one delivery
	signalRetry   = time.Minute     // between two tries, at most
	signalRefusal = 3               // so many refusals of one signal, and it is given up, on record
	signalPrefix  = "signal/"       // of the name under which a position stands
	signalSaved   = 4096            // entries until the position is written where nothing is told
	signalBatch   = 100             // events of OCSF in one delivery
	signalStuck   = 3               // so many failures one after the other, and it is on record
	signalNoted   = time.Hour       // but no more often
)

// receiver is told of what it was not told yet.
type receiver struct {
	cfg    config.Signal
	tells  map[signal.Topic]bool
	most   int            // signals in one delivery
	hook   *webhook       // forms webhook and ocsf
	signer *signal.Signer // forms set and poll
	token  remit.Secret   // of all forms but webhook
	client *http.Client   // of form set
	verify chan string    // form set: the state of a verification that was asked for
	turn   chan struct{}  // form poll: whoever holds it polls
	poll   poll

	mu       sync.Mutex // guards what follows
	trouble  trouble
	verified time.Time // when a verification was asked for last
}

// trouble is what is wrong with a receiver now. The zero value: nothing.
type trouble struct {
	tries  int // that failed, one after the other
	entry  uint64
	since  time.Time
	why    string
	status int       // that it answered; 0: it did not
	noted  time.Time // in the ledger
}

// refusalError is what a receiver answers that got a delivery, and does not want it: repeating helps little.
type refusalError int

func (e refusalError) Error() string { return fmt.Sprintf("it answered %d", int(e)) }

// refused reports whether an answer says that this message, not this moment, is wrong.
func (e refusalError) refused() bool {
	return e/100 == 4 && e != http.StatusRequestTimeout && e != http.StatusTooManyRequests && e != http.StatusUnauthorized && e != http.StatusForbidden && e != http.StatusNotFound
}

func (s *Server) openSignals() error {
	s.unpolled = make(chan struct{})
	for _, c := range s.cfg.Signals {
		r, err := s.newReceiver(c)
		if err != nil {
			return fmt.Errorf("signals: %s: %w", c.Name, err)
		}
		s.receivers = append(s.receivers, r)
	}
	return nil
}

func (s *Server) newReceiver(c config.Signal) (r *receiver, err error) {
	r = &receiver{cfg: c, tells: map[signal.Topic]bool{}, most: 1, verify: make(chan string, 1), turn: make(chan struct{}, 1)}
	for _, e := range c.Events {
		r.tells[signal.Topic(e)] = true
	}
	if !c.Token.IsZero() {
		if r.token, err = c.Token.Resolve(); err != nil {
			return nil, err
		}
	}
	//remit:guard S30 TestSignalStreams
	if c.Form == "poll" && len(r.token.Reveal()) < 24 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the token has fewer than 24 characters"}
	}
	if c.Form == "webhook" || c.Form == "ocsf" {
		if c.Form == "ocsf" {
			r.most = signalBatch
		}
		if r.hook, err = newWebhook(config.Announce{Name: c.Name, URL: c.URL, Form: "generic", Secret: c.Secret, CA: c.CA}); err == nil {
			r.hook.token = r.token
		}
		return r, err
	}
	key, err := c.Key.Resolve()
	if err != nil {
		return nil, err
	}
	if c.Form == "set" {
		if r.client, err = providerClient(c.CA); err != nil {
			return nil, err
		}
		r.client.Timeout = signalLimit
	}
	r.signer, err = signal.NewSigner(key, s.baseURL(), c.Audience)
	return r, err
}

// signal follows the ledger for every receiver until ctx ends.
func (s *Server) signal(ctx context.Context) error {
	for _, r := range s.receivers {
		if r.cfg.Form == "poll" {
			continue // it comes itself
		}
		s.signaling.Go(func() { s.follows(ctx, r) })
	}
	<-ctx.Done()
	close(s.unpolled)
	s.signaling.Wait()
	return nil
}

func (s *Server) follows(ctx context.Context, r *receiver) {
	name := signalPrefix + r.cfg.Name
	done, ok, err := s.store.Followed(name)
	for tries := 1; err != nil; tries++ {
		s.log.Error("the position of a receiver of signals is not read; it is tried again", "receiver", r.cfg.Name, "err", err)
		if !sleep(ctx, backoff(tries)) {
			return
		}
		done, ok, err = s.store.Followed(name)
	}
	if !ok { // one that is new is told of what comes
		done = s.before
		s.savePosition(ctx, name, done)
	}
	for saved := done; ; {
		committed := s.store.Committed()
		entries, err := s.store.Entries(done, followed)
		if err != nil {
			s.log.Error("the ledger is not read for a receiver of signals; it is tried again", "receiver", r.cfg.Name, "err", err)
			if !sleep(ctx, backoff(6)) {
				return
			}
			continue
		}
		told, next, ok := s.tellPage(ctx, r, done, entries)
		if done = next; told || done >= saved+signalSaved || !ok {
			s.savePosition(ctx, name, done)
			saved = done
		}
		if !ok {
			return
		}
		if len(entries) > 0 {
			select {
			case state := <-r.verify:
				s.pushVerification(ctx, r, state)
			default:
			}
			continue
		}
		select {
		case <-ctx.Done():
			s.savePosition(ctx, name, done)
			return
		case state := <-r.verify:
			s.pushVerification(ctx, r, state)
		case <-committed:
		}
	}
}

// tellPage tells what in some entries is for the receiver, and returns up to where it is done; ok is false when ctx ended before. After each
// delivery but the last one it writes the position down itself.
func (s *Server) tellPage(ctx context.Context, r *receiver, done uint64, entries []remit.Entry) (told bool, next uint64, ok bool) {
	var batch []signal.Signal
	for i, e := range entries {
		if kind := behaviour.KindOf(e.Body); r.tells[signal.TopicOf(kind)] {
			if sig, ok := signal.Of(kind, e); ok {
				batch = append(batch, sig)
			}
		}
		last := i == len(entries)-1
		if len(batch) < r.most && !last {
			continue
		}
		if len(batch) > 0 {
			if !s.tellSignals(ctx, r, batch) {
				return told, done, false
			}
			if told, batch = true, batch[:0]; !last {
				s.savePosition(ctx, signalPrefix+r.cfg.Name, e.Seq)
			}
		}
		done = e.Seq
	}
	return told, done, true
}

// savePosition writes down up to where a receiver was told. What cannot be written is told again after a restart.
func (s *Server) savePosition(ctx context.Context, name string, seq uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signalLimit)
	defer cancel()
	if _, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{remit.Followed{Name: name, Seq: seq}}}); err != nil {
		s.log.Warn("the position of a receiver of signals is not written", "receiver", name, "err", err)
	}
}

// tellSignals delivers until it is delivered; false when ctx ends before. What a receiver refuses again and again is given up, on record; of
// several that are refused together, each is tried alone.
func (s *Server) tellSignals(ctx context.Context, r *receiver, batch []signal.Signal) bool {
	for tries, refusals := 1, 0; ; tries++ {
		err := s.push(ctx, r, batch)
		if err == nil {
			r.recovered()
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		e := refusalError(0)
		switch {
		case !errors.As(err, &e):
		case e.refused():
			refusals++
		case tries >= signalRefusal && s.takesBare(ctx, r, batch):
			if err = s.push(ctx, r, batch); err == nil { // it bars nobody any more
				r.recovered()
				return true
			}
			refusals = signalRefusal
		}
		if refusals < signalRefusal {
			s.failed(ctx, r, &batch[0], err)
		} else {
			return s.tellApart(ctx, r, batch, err)
		}
		if !sleep(ctx, backoff(tries)) {
			return false
		}
	}
}

// takesBare reports whether a receiver that bars us (401, 403, 404) takes the same signal without text that an agent can choose: then
// what stands before it filters by that text, and the agent would choose what nobody is told.
func (s *Server) takesBare(ctx context.Context, r *receiver, batch []signal.Signal) bool {
	return r.hook != nil && s.push(ctx, r, []signal.Signal{batch[0].Bare()}) == nil
}

// tellApart tries alone what was refused together, and gives up what was refused alone.
func (s *Server) tellApart(ctx context.Context, r *receiver, batch []signal.Signal, why error) bool {
	if len(batch) == 1 {
		s.log.Warn("a signal was refused, and is given up", "receiver", r.cfg.Name, "entry", batch[0].Seq, "err", why)
		s.refusedSignal(ctx, r, &batch[0])
		return true
	}
	for i := range batch {
		if !s.tellSignals(ctx, r, batch[i:i+1]) {
			return false
		}
	}
	return true
}

// refusedSignal records that a receiver does not take a signal.
func (s *Server) refusedSignal(ctx context.Context, r *receiver, sig *signal.Signal) {
	r.recovered()
	s.recordSignal(ctx, sig, map[string]any{"finding": "signal_refused", "receiver": r.cfg.Name, "entry": sig.Seq})
}

func (s *Server) recordSignal(ctx context.Context, sig *signal.Signal, data map[string]any) {
	body, _ := json.Marshal(data) // plain values
	e := remit.Event{At: s.now(), Kind: remit.EventFinding, Agent: sig.Agent, Run: sig.Run, By: "remit", Data: body}
	if err := s.record(context.WithoutCancel(ctx), e); err != nil {
		s.log.Error("a finding is not on record", "receiver", data["receiver"], "entry", sig.Seq, "finding", data["finding"], "err", err)
	}
}

// push makes one try.
func (s *Server) push(ctx context.Context, r *receiver, batch []signal.Signal) error {
	id := batch[0].ID(r.cfg.Name)
	switch r.cfg.Form {
	case "webhook":
		return r.hook.deliver(ctx, batch[0].Webhook(), id, s.now())
	case "ocsf":
		return r.hook.deliver(ctx, s.ocsf(batch), fmt.Sprintf("%s-%d", id, len(batch)), s.now())
	}
	token, ok, err := r.signer.SET(&batch[0], s.agentID(batch[0].Agent), id, s.now())
	if err != nil || !ok {
		return err
	}
	return r.post(ctx, token)
}

// ocsf is a JSON array of events.
func (s *Server) ocsf(batch []signal.Signal) []byte {
	src, out := signal.Source{Version: s.version, TrustDomain: s.td.Name()}, []byte{'['}
	for i := range batch {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, batch[i].OCSF(src)...)
	}
	return append(out, ']')
}

// post pushes a token as RFC 8935 section 2 has it.
func (r *receiver) post(ctx context.Context, token string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.cfg.URL, bytes.NewReader([]byte(token)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/secevent+jwt")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "remit")
	if !r.token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+r.token.Reveal())
	}
	res, err := r.client.Do(req)
	if err != nil {
		if e, ok := err.(*url.Error); ok { //nolint:errorlint // as http.Client documents
			err = e.Err
		}
		return err
	}
	defer res.Body.Close() //nolint:errcheck // nothing of it counts
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	//remit:guard S36 TestSignalsGoNowhereElse
	if res.StatusCode/100 != 2 {
		return refusalError(res.StatusCode)
	}
	return nil
}

// backoff is how long is waited after so many tries.
func backoff(tries int) time.Duration { return min(time.Second/4<<min(tries, 9), signalRetry) }

// sleep waits; false when ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
