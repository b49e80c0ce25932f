// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"remit"
	"remit/internal/api"
)

// carryStreams carries the standard streams of an agent that the server runs in a sandbox, and ends as it does. An interrupt ends the
// agent: the server sees that its launcher is gone.
func (a *app) carryStreams(ctx context.Context, socket string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return &remit.Error{Code: remit.CodeUnavailable, Msg: "the agent's sandbox does not answer", Cause: err}
	}
	defer c.Close() //nolint:errcheck // it is over
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	go func() { // a read of standard input cannot be ended; it goes with the process
		_, _ = io.Copy(c, a.in)
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	for {
		kind, data, err := api.ReadFrame(c)
		switch {
		case err != nil && ctx.Err() != nil:
			return &childError{code: 130}
		case err != nil:
			return errors.Join(errors.New("the server ended the agent's sandbox"), err)
		case kind == api.FrameOutput:
			_, err = a.out.Write(data)
		case kind == api.FrameErrors:
			_, err = a.err.Write(data)
		case kind == api.FrameExit:
			return ended(data)
		}
		if err != nil {
			return err
		}
	}
}

func ended(data []byte) error {
	var e api.Exit
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("read how the agent ended: %w", err)
	}
	switch {
	case e.Cause != "exited":
		return &remit.Error{Code: remit.CodeUnavailable, Msg: "the agent's sandbox ended: " + e.Cause, Hint: "its limits stand in the agent's file: launch: sandbox"}
	case e.Code != 0:
		return &childError{code: e.Code}
	}
	return nil
}
