// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"remit"
)

// A call that people have to approve is answered at once. A stateless client that can open addresses gets input_required: a page that
// says how one looks at the request, and a requestState with which it comes back. When it does, its request waits here for a while for
// the answer, and is then decided anew like any other: the state, and what the client's user said, allow nothing. Every other client
// gets a result that says how to ask again.
const (
	answerWait = 20 * time.Second // of one request that came back; clients give up after half a minute or more
	askAgain   = 10               // seconds after which a client that cannot be asked should try again
)

// visits are the methods whose result may be input_required.
var visits = map[string]bool{"tools/call": true, "resources/read": true, "prompts/get": true}

// refused is the answer to what was not allowed.
func (k *call) refused(d *remit.Decision) ([]byte, *rpcError) {
	if d.Hold != "" && k.header != nil && !k.declined && visits[k.a.verb] && k.a.meta.opens() {
		return k.peopleRequired(d), nil
	}
	if k.a.verb == "tools/call" {
		return k.deniedResult(d), nil
	}
	return nil, k.deniedError(d)
}

// peopleRequired asks a stateless client to show its user where people approve (elicitation in URL mode). No value of the request is
// in it, and nothing that denies.
func (k *call) peopleRequired(d *remit.Decision) []byte {
	params := remit.AppendJSONString([]byte(`{"mode":"url","elicitationId":`), string(d.Hold))
	params = remit.AppendJSONString(append(params, `,"url":`...), k.h.cfg.Base+"/approvals/"+string(d.Hold))
	params = remit.AppendJSONString(append(params, `,"message":`...), fmt.Sprintf("%s asks for %s on %s: a person has to approve it until %s. The page says how.",
		d.Agent, d.Action, d.Target, clock(d.Until)))
	state := k.h.seal(k.c, k.a, sealed{Hold: d.Hold, Until: d.Until.Unix()})
	b := inputRequired("elicitation/create", append(params, '}'), state)
	b = append(append(b[:len(b)-1], `,"_meta":{"`+metaDenial+`":`...), k.denialData(d)...)
	return append(b, `}}`...)
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// opens reports whether a client declared that it can show its user an address.
func (m meta) opens() bool {
	var c struct {
		Elicitation map[string]json.RawMessage `json:"elicitation"`
	}
	return json.Unmarshal([]byte(m.capabilities), &c) == nil && c.Elicitation["url"] != nil
}

// back unseals the state of a request that comes back, before anything is decided: a state that is not this request's uses up no
// approval. One that was held waits for people first.
func (h *Handler) back(r *http.Request, k *call) (state sealed, e *rpcError) {
	if k.a.state == "" {
		return state, nil
	}
	if state, e = h.unseal(k.c, k.a, k.a.state); e != nil || state.Hold == "" {
		return state, e
	}
	k.declined = declined(k.a.inputs)
	k.a.inputs = "" // was for us: the server asked nothing
	if k.declined {
		return state, nil
	}
	return state, h.await(r, k, state.Hold)
}

// declined reports whether the client's user turned the page away: then the client is told in words, and not asked in a circle.
func declined(inputs string) bool {
	var in map[string]struct {
		Action string `json:"action"`
	}
	return inputs != "" && json.Unmarshal([]byte(inputs), &in) == nil && in[inputKey].Action != "" && in[inputKey].Action != "accept"
}

// await waits for people without a place in the quota, and then verifies the caller again: who he is and which run he is in may have
// ended meanwhile.
func (h *Handler) await(r *http.Request, k *call, hold remit.HoldID) *rpcError {
	owner := k.c.owner()
	h.mu.Lock()
	//remit:guard S35 TestWaitsForPeopleAreBounded
	if h.waits[owner] >= maxFlights {
		h.mu.Unlock()
		return &rpcError{code: codeDenied, message: "too many calls wait for people", status: http.StatusTooManyRequests}
	}
	h.waits[owner]++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.waits[owner]--; h.waits[owner] <= 0 {
			delete(h.waits, owner)
		}
	}()
	k.c.leave()
	if h.cfg.Answered != nil {
		ctx, cancel := context.WithTimeout(r.Context(), answerWait)
		defer cancel()
		defer context.AfterFunc(h.ctx, cancel)()
		h.cfg.Answered(ctx, hold)
	}
	again, err := h.caller(r)
	//remit:guard S12 TestWhoWaitsIsVerifiedAgain
	if err != nil {
		return &rpcError{code: codeDenied, message: "the caller's identity ended while it waited", status: http.StatusUnauthorized}
	}
	var ok bool
	if again.account, ok = h.enter(&again, 0); !ok {
		return &rpcError{code: codeDenied, message: "more requests than this agent's quota", status: http.StatusTooManyRequests}
	}
	*k.c = again
	return nil
}

// appendHeld appends how one that cannot be asked goes on: until when, and when to ask again.
func appendHeld(b []byte, d *remit.Decision) []byte {
	b = append(b, `"held":true,`...)
	if d.Hold == "" {
		return b
	}
	b = remit.AppendJSONString(append(b, `"hold":`...), string(d.Hold))
	b = remit.AppendJSONString(append(b, `,"until":`...), clock(d.Until))
	return append(strconv.AppendInt(append(b, `,"retry_after_s":`...), askAgain, 10), ',')
}
