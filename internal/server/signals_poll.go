// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"remit"
	"remit/internal/behaviour"
	"remit/internal/signal"
)

// A receiver of form poll fetches tokens, and says which ones it has (RFC 8936). Its position moves over what it has said so, in order: what it
// took and did not acknowledge it is given again, also after a restart, by the same jti.
const (
	pollMost = 100              // tokens in one answer
	pollHeld = 1024             // that are offered, and not let go of
	pollWait = 20 * time.Second // that a poll waits for something
)

// poll is what a receiver was given and did not acknowledge. Whoever holds the receiver's turn owns it.
type poll struct {
	begun   bool
	done    uint64 // the position: all up to it is acknowledged, or for somebody else
	read    uint64 // up to where the ledger was read for it
	offered []offer
}

// offer is one token. A verification has no entry.
type offer struct {
	jti, token string
	seq        uint64
	acked      bool
}

// pollRequest is what a receiver asks (RFC 8936 section 2.2).
type pollRequest struct {
	Max         *int     `json:"maxEvents"`
	Immediately bool     `json:"returnImmediately"`
	Ack         []string `json:"ack"`
	Errors      map[string]struct {
		Err string `json:"err"`
	} `json:"setErrs"`
}

// pollAnswer is what it gets (section 2.3).
type pollAnswer struct {
	Sets map[string]string `json:"sets"`
	More bool              `json:"moreAvailable,omitempty"`
}

var errPolling = errors.New("another poll of this stream waits")

// polled answers a poll. It holds the receiver's turn, and waits for something to tell, unless it is asked not to.
func (s *Server) polled(ctx context.Context, r *receiver, req *pollRequest) (pollAnswer, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	default:
		return pollAnswer{}, errPolling
	}
	most := pollMost
	if req.Max != nil {
		most = min(max(*req.Max, 0), pollMost)
	}
	if err := s.beginPoll(ctx, r); err != nil {
		return pollAnswer{}, err
	}
	s.acknowledge(ctx, r, req)
	limit := time.NewTimer(pollWait)
	defer limit.Stop()
	for {
		committed := s.store.Committed()
		if err := s.offer(r, most+1); err != nil {
			return pollAnswer{}, err
		}
		s.movePoll(ctx, r)
		out := pollAnswer{Sets: map[string]string{}}
		for _, o := range r.poll.offered {
			switch {
			case o.acked:
			case len(out.Sets) == most:
				out.More = true
			default:
				out.Sets[o.jti] = o.token
			}
		}
		if len(out.Sets) > 0 || out.More || req.Immediately || most == 0 {
			return out, nil
		}
		select {
		case <-committed:
		case state := <-r.verify:
			if err := s.offerVerification(r, state); err != nil {
				return out, err
			}
		case <-limit.C:
			return out, nil
		case <-s.unpolled:
			return out, nil
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
}

func (s *Server) beginPoll(ctx context.Context, r *receiver) error {
	if r.poll.begun {
		return nil
	}
	name := signalPrefix + r.cfg.Name
	done, ok, err := s.store.Followed(name)
	if err != nil {
		return err
	}
	if !ok { // one that is new is told of what comes
		done = s.before
		s.savePosition(ctx, name, done)
	}
	r.poll = poll{begun: true, done: done, read: done}
	return nil
}

// acknowledge notes what the receiver has, and what it does not want, which is on record and not offered again. What it was never offered it cannot
// acknowledge.
func (s *Server) acknowledge(ctx context.Context, r *receiver, req *pollRequest) {
	for i := range r.poll.offered {
		o := &r.poll.offered[i]
		e, refused := req.Errors[o.jti]
		if refused && !o.acked {
			s.log.Warn("a receiver refused a signal", "receiver", r.cfg.Name, "entry", o.seq, "err", remit.Clip(e.Err, 60))
			s.recordSignal(ctx, &signal.Signal{Seq: o.seq}, map[string]any{"finding": "signal_refused", "receiver": r.cfg.Name, "entry": o.seq})
		}
		o.acked = o.acked || refused || slices.Contains(req.Ack, o.jti)
	}
}

// offer reads the ledger until so many tokens are offered and not acknowledged, or it ends. Behind one that is never acknowledged there is an end, too.
func (s *Server) offer(r *receiver, most int) error {
	p := &r.poll
	select {
	case state := <-r.verify:
		if err := s.offerVerification(r, state); err != nil {
			return err
		}
	default:
	}
	waiting := 0
	for _, o := range p.offered {
		if !o.acked {
			waiting++
		}
	}
	for waiting < most && len(p.offered) < pollHeld {
		entries, err := s.store.Entries(p.read, followed)
		if err != nil || len(entries) == 0 {
			return err
		}
		for _, e := range entries {
			if waiting >= most || len(p.offered) >= pollHeld {
				break
			}
			o, ok, err := s.offerOf(r, e)
			if err != nil {
				return err
			}
			if p.read = e.Seq; ok {
				p.offered = append(p.offered, o)
				waiting++
			}
		}
	}
	return nil
}

// offerOf is the token of an entry, if there is one for this receiver.
func (s *Server) offerOf(r *receiver, e remit.Entry) (o offer, ok bool, err error) {
	kind := behaviour.KindOf(e.Body)
	if !r.tells[signal.TopicOf(kind)] {
		return o, false, nil
	}
	sig, ok := signal.Of(kind, e)
	if !ok {
		return o, false, nil
	}
	o = offer{jti: sig.ID(r.cfg.Name), seq: e.Seq}
	o.token, ok, err = r.signer.SET(&sig, s.agentID(sig.Agent), o.jti, s.now())
	return o, ok, err
}

func (s *Server) offerVerification(r *receiver, state string) error {
	id := verificationID(r)
	token, err := r.signer.Verification(r.cfg.Name, state, id, s.now())
	if err == nil {
		r.poll.offered = append(r.poll.offered, offer{jti: id, token: token, seq: r.poll.read})
	}
	return err
}

// movePoll lets go of what is acknowledged from the oldest on, and writes the position down when something was.
func (s *Server) movePoll(ctx context.Context, r *receiver) {
	p, saved := &r.poll, r.poll.done
	let := 0
	for let < len(p.offered) && p.offered[let].acked {
		p.done = p.offered[let].seq
		let++
	}
	p.offered = slices.Delete(p.offered, 0, let)
	if len(p.offered) == 0 {
		p.done = p.read
	}
	if let > 0 || p.done >= saved+signalSaved {
		s.savePosition(ctx, signalPrefix+r.cfg.Name, p.done)
	}
}

// pushVerification sends one to a receiver that is pushed to; what fails is asked for again by who waits for it.
func (s *Server) pushVerification(ctx context.Context, r *receiver, state string) {
	token, err := r.signer.Verification(r.cfg.Name, state, verificationID(r), s.now())
	if err == nil {
		err = r.post(ctx, token)
	}
	if err != nil {
		s.log.Warn("a verification of a stream was not delivered", "receiver", r.cfg.Name, "err", err)
	}
}

// verificationID is another one each time.
func verificationID(r *receiver) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("ver-%s-%d", r.cfg.Name, r.verified.UnixNano())
}

// mayVerify reports whether enough time has passed since the last verification, and begins a new wait.
func (r *receiver) mayVerify(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	//remit:guard S35 TestSignalStreams
	if !r.verified.IsZero() && now.Sub(r.verified) < verifyEvery {
		return false
	}
	r.verified = now
	return true
}

// statusOf is the answer to what went wrong with a poll.
func statusOf(err error) int {
	if errors.Is(err, errPolling) {
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}
