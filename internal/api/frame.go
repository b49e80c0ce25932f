// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// FrameKind says what a frame of a launch's streams holds.
type FrameKind byte

// The kinds. FrameAlive holds nothing: it finds out whether the launcher is still there.
const (
	FrameAlive FrameKind = iota
	FrameOutput
	FrameErrors
	FrameExit // an Exit in JSON, and the last frame
)

// Exit is how an agent in a sandbox ended: exited, or which limit ended it, as docs/sandbox.md lists them.
type Exit struct {
	Cause string `json:"cause"`
	Code  int    `json:"code"`
}

// MaxFrame is how much one frame holds.
const MaxFrame = 64 << 10

// WriteFrame writes one frame of at most MaxFrame.
func WriteFrame(w io.Writer, kind FrameKind, data []byte) error {
	if len(data) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes", len(data))
	}
	head := make([]byte, 5, 5+len(data))
	head[0] = byte(kind)
	binary.BigEndian.PutUint32(head[1:], uint32(len(data))) //nolint:gosec // bounded
	_, err := w.Write(append(head, data...))
	return err
}

// ReadFrame reads one.
func ReadFrame(r io.Reader) (FrameKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame || FrameKind(head[0]) > FrameExit {
		return 0, nil, errors.New("what the server sends is no frame")
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return FrameKind(head[0]), data, err
}
