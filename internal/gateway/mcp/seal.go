// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"remit"
)

// newAEAD makes the cipher of sealed states. Its key lives as long as the process: so do the calls that are suspended.
func newAEAD() (cipher.AEAD, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make a key for sealed states: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make a key for sealed states: %w", err)
	}
	return aead, nil
}

// sealed is what a requestState holds for a client that has to come back: a suspended call, what people are asked about, or the
// server's own state.
type sealed struct {
	Flight string       `json:"f,omitempty"`
	State  string       `json:"s,omitempty"`
	Hold   remit.HoldID `json:"h,omitempty"`
	// Asked are the names under which the server asks; there is no answer under another.
	Asked []string `json:"a,omitempty"`
	Until int64    `json:"u"` // seconds of Unix time
}

// bound is what a state is bound to: the caller with its run, and the request that it belongs to. Whoever changes the arguments
// between two rounds has another request.
func bound(c *caller, a *asked) []byte {
	sum := sha256.New()
	for _, part := range []string{c.owner(), a.verb, a.server, a.name, a.uri, string(a.args.AppendJSON(nil))} {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return sum.Sum(nil)
}

func (h *Handler) seal(c *caller, a *asked, s sealed) string {
	if s.Until == 0 {
		s.Until = c.at.Add(h.cfg.Timeout).Unix()
	}
	b, _ := json.Marshal(s) // strings and a number
	return base64.RawURLEncoding.EncodeToString(h.aead.Seal(nil, nil, b, bound(c, a)))
}

// unseal returns what seal put in, for the same caller, run and request, and before it is over.
func (h *Handler) unseal(c *caller, a *asked, text string) (sealed, *rpcError) {
	var s sealed
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		raw, err = h.aead.Open(nil, nil, raw, bound(c, a))
	}
	//remit:guard S29 TestStateIsBound
	if err != nil {
		return s, invalid("requestState is not of this request")
	}
	if err := json.Unmarshal(raw, &s); err != nil || c.at.After(time.Unix(s.Until, 0)) {
		return s, invalid("requestState is over: make the request again")
	}
	return s, nil
}

// answers leaves of what a client answers that which the server asked for: anything else nobody decided (S29), and is ignored.
func (s *sealed) answers(a *asked) *rpcError {
	if a.inputs == "" || s.Flight != "" {
		return nil
	}
	given, err := parseObject([]byte(a.inputs))
	if err != nil {
		return invalid("inputResponses cannot be read")
	}
	asked := object{}
	for _, m := range given {
		//remit:guard S29 TestOnlyQuestionsAreAnswered
		if !slices.Contains(s.Asked, m.name) {
			continue
		}
		asked = append(asked, m)
	}
	a.inputs = string(asked.append(nil))
	return nil
}
