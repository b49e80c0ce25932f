// SPDX-License-Identifier: Apache-2.0

package login

import (
	"net/netip"
	"time"

	"remit"
)

// room refuses a login when too many wait already; h.mu is held. When all places are taken, the network that has the most gives its oldest
// one up to somebody whose network has fewer, so that who fills them keeps himself out first.
func (h *Handler) room(address string, now time.Time) (instead string, err error) {
	host, network := places(address)
	same, held := 0, map[string]int{}
	for id, w := range h.waiting {
		if !now.Before(w.until) {
			delete(h.waiting, id)
			continue
		}
		at, of := places(w.address)
		held[of]++
		if at == host {
			same++
		}
	}
	full := &remit.Error{Code: remit.CodeExhausted, Msg: "too many logins wait for their person", Hint: "try again in some minutes"}
	//remit:guard S35 TestWaitingLoginsAreBounded
	if same >= maxWaitingAddress {
		return "", full
	}
	if len(h.waiting) < maxWaiting {
		return "", nil
	}
	most := network
	for of, n := range held {
		if n > held[most] {
			most = of
		}
	}
	//remit:guard S35 TestStrangersKeepThemselvesOut
	if most == network {
		return "", full
	}
	return h.oldest(most), nil
}

// oldest is the login that waits for the longest of those of a network.
func (h *Handler) oldest(network string) (id string) {
	var until time.Time
	for other, w := range h.waiting {
		if _, of := places(w.address); of == network && (id == "" || w.until.Before(until)) {
			id, until = other, w.until
		}
	}
	return id
}

// places are what an address counts as: one host, which in IPv6 has a /64, and the network that somebody may well have all of.
func places(address string) (host, network string) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address, address
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		p, _ := a.Prefix(24) // of an address: never an error
		return a.String(), p.String()
	}
	one, _ := a.Prefix(64)
	all, _ := a.Prefix(48)
	return one.String(), all.String()
}
