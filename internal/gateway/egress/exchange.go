// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"remit"
)

// serve answers one request of the tool: a proxy request, CONNECT, or one inside a connection whose origin CONNECT fixed.
func (g *Gate) serve(w http.ResponseWriter, r *http.Request) {
	if !g.enter() {
		panic(http.ErrAbortHandler)
	}
	defer g.work.Done()
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		(&refusal{status: http.StatusTooManyRequests, code: remit.CodeExhausted, message: "too many requests at a time", hint: "wait for some of them"}).write(w)
		return
	}
	at := g.proxy.cfg.Now()
	size := r.ContentLength
	//remit:guard S35 TestQuotaCountsUnknownLengths
	if size < 0 || size > maxParsed {
		size = maxParsed // as much as is kept here of any
	}
	account, ok := g.proxy.cfg.Quota.Enter(string(g.box.Tool), int(size), at)
	//remit:guard S35 TestQuotaOfATool
	if !ok {
		(&refusal{status: http.StatusTooManyRequests, code: remit.CodeExhausted, message: "the tool's quota is used up", hint: "ask again in a moment"}).write(w)
		return
	}
	defer account.Leave()
	to, _ := r.Context().Value(originKey{}).(origin)
	if to == (origin{}) && r.Method == http.MethodConnect {
		g.connect(w, r, at)
		return
	}
	to, err := originOf(r, to)
	if err != nil {
		g.refuse(w, r, at, r.Host, nil, err)
		return
	}
	g.exchange(w, r, to, at)
}

// originOf returns where a request is for. Inside a tunnel that is fixed, and a request that names another is refused: what is decided
// and what a server takes from Host must not differ.
func originOf(r *http.Request, fixed origin) (origin, error) {
	if fixed == (origin{}) {
		if r.URL.Scheme != "http" && r.URL.Scheme != "https" || r.URL.User != nil {
			return origin{}, unacceptable("this is a proxy: send the whole URL, http or https, without a user in it")
		}
		host, port, ok := authority(r.URL.Host, r.URL.Scheme)
		if !ok {
			return origin{}, unacceptable("the URL names no host and port")
		}
		return origin{r.URL.Scheme, host, port}, nil
	}
	host, port, ok := authority(r.Host, fixed.scheme)
	//remit:guard S28 TestHostIsTheTunnels
	if !ok || host != fixed.host || port != fixed.port || r.URL.Scheme != "" && r.URL.Scheme != fixed.scheme || r.URL.User != nil {
		return fixed, unacceptable("this connection is to %s, the request names another host", joinHostPort(fixed.host, fixed.port))
	}
	return fixed, nil
}

// refuse records a denial of the gate's own and answers it. The err is what the tool sees, if it says more than the decision.
func (g *Gate) refuse(w http.ResponseWriter, r *http.Request, at time.Time, target string, reasons []remit.Reason, err error) {
	req := newRequest(&g.box, at, actionOf(r.Method), remit.Clip(target, 200), nil)
	if reasons == nil {
		reasons = []remit.Reason{{Code: remit.ReasonArgument, Of: "message", Got: remit.Clip(text(err), 200)}}
	}
	req.Refused = reasons
	req.Under, _, _ = g.box.Call()
	d, derr := g.proxy.cfg.Line.Decide(r.Context(), req)
	f := denied(&d)
	switch {
	case derr != nil:
		f = unrecorded()
	case err != nil:
		f = refusalOf(err)
		f.id = d.ID
	}
	f.write(w)
}

// decide asks the line. A nil decision has been answered.
func (g *Gate) decide(w http.ResponseWriter, ctx context.Context, req *remit.Request) (*remit.Decision, <-chan struct{}) {
	id, done, ok := g.box.Call()
	req.Under = id
	//remit:guard S24 TestOutsideACall
	if !ok {
		req.Under, req.Refused = "", []remit.Reason{{Code: remit.ReasonUnder, Of: "call"}}
	}
	d, err := g.proxy.cfg.Line.Decide(ctx, req)
	if err != nil {
		g.proxy.cfg.Log.Error("an egress request could not be decided", "tool", g.box.Tool, "action", req.Action, "target", req.Target, "err", err)
		unrecorded().write(w)
		return nil, nil
	}
	if d.Effect != remit.Allow {
		denied(&d).write(w)
		return nil, nil
	}
	now, _, _ := g.box.Call()
	//remit:guard S11 TestCallEndsWhileDeciding
	if now != id {
		g.note(&d, remit.Outcome{Status: http.StatusForbidden, Detail: map[string]string{"error": "the call ended before the request was sent"}})
		(&refusal{status: http.StatusForbidden, code: remit.CodeDenied, message: "the call ended", id: d.ID}).write(w)
		return nil, nil
	}
	return &d, done
}

// exchange decides one request and passes it on.
func (g *Gate) exchange(w http.ResponseWriter, r *http.Request, to origin, at time.Time) {
	t := g.proxy.cfg.Targets().of(to.scheme, to.host, to.port)
	//remit:guard S28 TestUnlistedHost
	if t == nil || t.tunnel {
		g.refuse(w, r, at, to.scheme+"://"+joinHostPort(to.host, to.port), []remit.Reason{{Code: remit.ReasonNoPermission, Of: "host"}}, nil)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	m, err := read(r, t)
	if err != nil {
		g.refuse(w, r, at, t.name, nil, err)
		return
	}
	d, done := g.decide(w, r.Context(), newRequest(&g.box, at, methods[m.method], t.name, m.args))
	if d == nil {
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	ctx, cancel := during(r.Context(), done)
	defer cancel(nil)
	x := &exchange{gate: g, target: t, message: m, decision: d, injects: t.inject.fits(m)}
	defer func() { g.note(d, x.outcome()) }()
	x.run(ctx, cancel, w)
}

// during returns a context that ends with the call, too. Its cancel ends the goroutine that waits for that.
func during(ctx context.Context, done <-chan struct{}) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	//remit:guard S24 TestStreamEndsWithItsCall
	if done != nil {
		go func() {
			select {
			case <-done:
				cancel(errCallEnded)
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}

var errCallEnded = errors.New("the call that it was under ended")

const bodyTimeout = 2 * time.Minute

// exchange is one decided request on its way.
type exchange struct {
	gate           *Gate
	target         *Target
	message        *message
	decision       *remit.Decision
	injects        bool
	status         int
	sent, received atomic.Int64
	err            error
}

func (x *exchange) outcome() remit.Outcome {
	detail := map[string]string{"sent": strconv.FormatInt(x.sent.Load(), 10), "received": strconv.FormatInt(x.received.Load(), 10)}
	if x.injects {
		detail["credential"] = "injected"
	}
	if x.err != nil {
		detail["error"] = remit.Clip(x.err.Error(), 200)
	}
	return remit.Outcome{Verb: x.message.method, Status: x.status, Allowed: x.status != 0,
		Effective: x.status >= 200 && x.status < 300 || x.status == http.StatusSwitchingProtocols, Detail: detail}
}

// run sends the request and passes the answer on. A redirect is an answer like any other. Only a request that is free of effect by its
// method and met a kept connection that was dead already is sent again, as net/http does.
func (x *exchange) run(ctx context.Context, cancel context.CancelCauseFunc, w http.ResponseWriter) {
	out := x.message.upstream(x.target).WithContext(ctx)
	if out.Body != nil {
		out.Body = &counted{out.Body, &x.sent, maxOpaque}
	}
	if x.injects {
		if x.err = x.target.inject.apply(ctx, out, x.message, x.gate.proxy.cfg.Now()); x.err != nil {
			x.fail(w, x.err)
			return
		}
	}
	resp, err := x.gate.transport(x.target).RoundTrip(out)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		x.fail(w, err)
		return
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is given up
	x.status = resp.StatusCode
	if err := x.examine(resp); err != nil {
		x.fail(w, err)
		return
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.upgrade(ctx, w, resp)
		return
	}
	x.pass(ctx, cancel, w, resp)
}

// fail answers in place of a server that gave no answer, or one that must not be passed on.
func (x *exchange) fail(w http.ResponseWriter, err error) {
	x.err = err
	f := &refusal{status: http.StatusBadGateway, code: remit.CodeUnavailable, message: x.target.name + " gave no answer", id: x.decision.ID,
		hint: "the request may have been acted on; look before it is sent again"}
	switch {
	case errors.Is(err, errAddress):
		f.status, f.code, f.message, f.hint = http.StatusForbidden, remit.CodeDenied, x.target.name+" was not reached: "+errAddress.Error(),
			"an operator sees which in the ledger; a private server needs private: true or addresses in its target"
	case errors.Is(err, errSecret):
		f.message, f.hint = "the answer of "+x.target.name+" was cut: "+errSecret.Error(), "ask for something that does not repeat the request's headers"
	case errors.Is(err, errBodyTooLarge):
		f = refusalOf(tooLarge(maxOpaque))
		f.id = x.decision.ID
	}
	x.gate.proxy.cfg.Log.Warn("an egress request failed", "tool", x.gate.box.Tool, "target", x.target.name, "decision", x.decision.ID, "err", err)
	f.write(w)
}

// examine refuses an answer that cannot be passed on.
func (x *exchange) examine(resp *http.Response) error {
	if (resp.StatusCode == http.StatusSwitchingProtocols) != (resp.StatusCode < 200) || resp.StatusCode == http.StatusSwitchingProtocols && !x.message.upgrade {
		return errors.New("the server switched protocols without being asked")
	}
	in := x.target.inject
	if in == nil {
		return nil
	}
	for name, vs := range resp.Header {
		//remit:guard S28 TestSecretIsCut
		if in.found(name) || in.found(strings.Join(vs, "\n")) {
			return errSecret
		}
	}
	//remit:guard S28 TestEncodedAnswer
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") && x.message.method != http.MethodHead {
		return errors.New("the answer is encoded, so it cannot be searched for the secret")
	}
	resp.Body = in.reader(resp.Body)
	return nil
}

// hopByHop headers belong to the connection (RFC 9110, section 7.6.1); Alt-Svc would name another way to the server.
var hopByHop = set("Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding",
	"Upgrade", "Alt-Svc", "Proxy-Status")

func passHeader(to, from http.Header) {
	named := set()
	for _, v := range from["Connection"] {
		for f := range strings.SplitSeq(v, ",") {
			named[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(f))] = true
		}
	}
	for h, vs := range from {
		if !hopByHop[h] && !named[h] {
			to[h] = vs
		}
	}
}

// pass copies the answer as it arrives.
func (x *exchange) pass(ctx context.Context, cancel context.CancelCauseFunc, w http.ResponseWriter, resp *http.Response) {
	idle := time.AfterFunc(streamTimeout, func() { cancel(errors.New("nothing arrived for too long")) })
	defer idle.Stop()
	buf := make([]byte, 32<<10)
	n, err := 0, error(nil)
	// A short answer is looked at before any of it leaves, so that the tool gets an error it can read instead of half an answer.
	if x.injects && resp.ContentLength > 0 && x.message.method != http.MethodHead {
		n, err = io.ReadAtLeast(resp.Body, buf, int(min(resp.ContentLength, int64(len(buf)))))
		if errors.Is(err, errSecret) {
			x.fail(w, err)
			return
		}
	}
	passHeader(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(w).Flush
	if resp.ContentLength < 0 {
		_ = flush()
	}
	for {
		if n > 0 {
			x.received.Add(int64(n))
			if _, werr := w.Write(buf[:n]); werr != nil {
				x.err = errors.New("the tool went away")
				panic(http.ErrAbortHandler)
			}
			if resp.ContentLength < 0 {
				_ = flush()
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			if x.err = err; context.Cause(ctx) != nil {
				x.err = context.Cause(ctx)
			}
			panic(http.ErrAbortHandler) // the tool sees that the answer is not whole
		}
		idle.Reset(streamTimeout)
		n, err = resp.Body.Read(buf)
	}
}

// counted counts what is read, and ends beyond most bytes.
type counted struct {
	io.ReadCloser
	n    *atomic.Int64
	most int64
}

var errBodyTooLarge = errors.New("the body is too large")

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	//remit:guard S35 TestOpaqueBodies
	if c.n.Add(int64(n)) > c.most {
		return 0, errBodyTooLarge
	}
	return n, err
}
