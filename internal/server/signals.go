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
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit"
	"remit/internal/behaviour"
	"remit/internal/config"
	"remit/internal/signal"
)

// Signals tell receivers of findings and suspensions. The ledger is all that they read, each receiver from a position of its own that
// stands in the store: a restart repeats at most the last delivery, by the same id, and loses none. Each has its own goroutine, which
// holds one entry at a time; one that is dead or hangs holds up neither another nor anything on the line.
const (
	signalLimit   = 5 * time.Second // for one delivery
	signalRetry   = time.Minute     // between two tries, at most
	signalRefusal = 3               // so many refusals of one signal, and it is given up, on record
	signalPrefix  = "signal/"       // of the name under which a position stands
	signalSaved   = 4096            // entries until the position is written where nothing is told
)

// receiver is told of what it was not told yet.
type receiver struct {
	cfg    config.Signal
	hook   *webhook       // form webhook
	signer *signal.Signer // form set
	token  remit.Secret   // of form set
	client *http.Client   // of form set
}

// refusalError is what a receiver answers that got a delivery, and does not want it: repeating helps little.
type refusalError int

func (e refusalError) Error() string { return fmt.Sprintf("it answered %d", int(e)) }

// refused reports whether an answer says that this message, not this moment, is wrong.
func (e refusalError) refused() bool {
	return e/100 == 4 && e != http.StatusRequestTimeout && e != http.StatusTooManyRequests && e != http.StatusUnauthorized && e != http.StatusForbidden && e != http.StatusNotFound
}

func (s *Server) openSignals() error {
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
	r = &receiver{cfg: c}
	if c.Form == "webhook" {
		r.hook, err = newWebhook(config.Announce{Name: c.Name, URL: c.URL, Form: "generic", Secret: c.Secret, CA: c.CA})
		return r, err
	}
	key, err := c.Key.Resolve()
	if err != nil {
		return nil, err
	}
	if !c.Token.IsZero() {
		if r.token, err = c.Token.Resolve(); err != nil {
			return nil, err
		}
	}
	if r.client, err = providerClient(c.CA); err != nil {
		return nil, err
	}
	r.client.Timeout = signalLimit
	r.signer, err = signal.NewSigner(key, s.baseURL(), c.Audience)
	return r, err
}

// signal follows the ledger for every receiver until ctx ends.
func (s *Server) signal(ctx context.Context) error {
	for _, r := range s.receivers {
		s.signaling.Go(func() { s.follows(ctx, r) })
	}
	<-ctx.Done()
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
		for _, e := range entries {
			sig, told := signal.Of(behaviour.KindOf(e.Body), e)
			if told && !s.tellSignal(ctx, r, &sig) {
				s.savePosition(ctx, name, done)
				return
			}
			if done = e.Seq; told || done >= saved+signalSaved {
				s.savePosition(ctx, name, done)
				saved = done
			}
		}
		if len(entries) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			s.savePosition(ctx, name, done)
			return
		case <-committed:
		}
	}
}

// savePosition writes down up to where a receiver was told. What cannot be written is told again after a restart.
func (s *Server) savePosition(ctx context.Context, name string, seq uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signalLimit)
	defer cancel()
	if _, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{remit.Followed{Name: name, Seq: seq}}}); err != nil {
		s.log.Warn("the position of a receiver of signals is not written", "receiver", name, "err", err)
	}
}

// tellSignal delivers until it is delivered; false when ctx ends before. What a receiver refuses again and again is given up, on record.
func (s *Server) tellSignal(ctx context.Context, r *receiver, sig *signal.Signal) bool {
	for tries, refusals := 1, 0; ; tries++ {
		err := s.push(ctx, r, sig)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if e := refusalError(0); errors.As(err, &e) && e.refused() {
			refusals++
		}
		s.log.Warn("a signal was not delivered", "receiver", r.cfg.Name, "entry", sig.Seq, "tries", tries, "err", err)
		if refusals >= signalRefusal {
			s.refusedSignal(ctx, r, sig)
			return true
		}
		if !sleep(ctx, backoff(tries)) {
			return false
		}
	}
}

// refusedSignal records that a receiver does not take a signal.
func (s *Server) refusedSignal(ctx context.Context, r *receiver, sig *signal.Signal) {
	body, _ := json.Marshal(map[string]any{"finding": "signal_refused", "receiver": r.cfg.Name, "entry": sig.Seq}) // plain values
	e := remit.Event{At: s.now(), Kind: remit.EventFinding, Agent: sig.Agent, Run: sig.Run, By: "remit", Data: body}
	if err := s.record(context.WithoutCancel(ctx), e); err != nil {
		s.log.Error("a finding is not on record", "receiver", r.cfg.Name, "entry", sig.Seq, "finding", "signal_refused", "err", err)
	}
}

// push makes one try.
func (s *Server) push(ctx context.Context, r *receiver, sig *signal.Signal) error {
	id := sig.ID(r.cfg.Name)
	if r.hook != nil {
		return r.hook.deliver(ctx, sig.Webhook(), id, s.now())
	}
	token, ok, err := r.signer.SET(sig, s.agentID(sig.Agent), id, s.now())
	if err != nil || !ok {
		return err
	}
	return r.post(ctx, token)
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

// signalRoutes publish the keys that verify tokens, and the transmitter's metadata (SSF 1.0 section 7.1). Streams are what remit.yaml says:
// a receiver cannot make one.
func (s *Server) signalRoutes(mux *http.ServeMux) {
	keys := jose.JSONWebKeySet{}
	for _, r := range s.receivers {
		if r.signer != nil {
			keys.Keys = append(keys.Keys, r.signer.Public())
		}
	}
	if len(keys.Keys) == 0 {
		return
	}
	about := map[string]any{"spec_version": "1_0", "issuer": s.baseURL(), "jwks_uri": s.baseURL() + "/ssf/jwks.json", "delivery_methods_supported": []string{"urn:ietf:rfc:8935"}}
	for path, v := range map[string]any{"GET /.well-known/ssf-configuration": about, "GET /ssf/jwks.json": keys} {
		body, err := json.Marshal(v)
		if err != nil {
			panic("server: " + err.Error()) // plain values and public keys
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		})
	}
}
