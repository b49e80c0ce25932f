// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"time"

	"remit"
)

// hears reports in which stage the caller may hear of the server at the moment, and why it may not: it is suspended, its run is over, the
// stage does not show the server.
func (h *Handler) hears(c *caller, server string) (stage string, why *remit.Reason) {
	now := *c
	now.at = h.cfg.Now()
	req := (&call{h: h, c: &now}).request("mcp.list", server)
	view, reasons := h.cfg.Stages.Visible(&req)
	if len(reasons) > 0 {
		return "", &reasons[0]
	}
	if server != "" && !view.sees(server) {
		return "", &remit.Reason{Code: remit.ReasonNoPermission}
	}
	return view.Stage, nil
}

// Recheck has every open stream ask at once whether its caller may still hear.
func (h *Handler) Recheck() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.recheck)
	h.recheck = make(chan struct{})
}

func (h *Handler) asked() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.recheck
}

// long is the context of a stream that no request ends: it ends with the caller's credential, with the gateway, after an hour, and at the
// next Recheck, or else within a second, after the caller may not hear of the server any more, or its run is in another stage: there it
// asks anew.
func (h *Handler) long(ctx context.Context, c *caller, server, stage string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, max(0, min(time.Hour, c.who.Expires.Sub(c.at))))
	stop := context.AfterFunc(h.ctx, cancel)
	who := *c
	watched := h.spawn(func() {
		for {
			asked := h.asked() // before it looks: what is tightened from here on wakes it
			//remit:guard S23 TestStreamsEnd
			if now, why := h.hears(&who, server); why != nil || now != stage {
				cancel()
			}
			select {
			case <-ctx.Done():
				return
			case <-asked:
			case <-time.After(time.Second):
			}
		}
	})
	if !watched { // the gateway is closing
		cancel()
	}
	return ctx, func() { stop(); cancel() }
}
