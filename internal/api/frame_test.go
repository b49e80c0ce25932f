// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"remit/internal/api"
)

// FuzzReadFrame: whatever the other side sends, a frame is read whole or not at all, holds no more than it may, and is what would be
// written for it; what follows it is left alone.
func FuzzReadFrame(f *testing.F) {
	for _, c := range []struct {
		kind api.FrameKind
		data string
	}{{api.FrameAlive, ""}, {api.FrameOutput, "hello\n"}, {api.FrameErrors, "a warning"}, {api.FrameExit, `{"cause":"exited","code":3}`}} {
		var b bytes.Buffer
		if err := api.WriteFrame(&b, c.kind, []byte(c.data)); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(append(b.Bytes(), 0, 0))
	}
	for _, raw := range []string{"", "\x01", "\x01\x00\x00\x00", "\x01\x00\x00\x00\x05abc", "\x04\x00\x00\x00\x00", "\xff\x00\x00\x00\x01a", "\x01\x00\x01\x00\x00", "\x01\x00\x01\x00\x01", "\x01\xff\xff\xff\xff"} {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		r := bytes.NewReader(sent)
		kind, data, err := api.ReadFrame(r)
		if err != nil {
			if len(sent) == 0 && !errors.Is(err, io.EOF) {
				t.Errorf("a connection that ends between frames: %v", err)
			}
			return
		}
		if kind > api.FrameExit || len(data) > api.MaxFrame {
			t.Fatalf("a frame of kind %d with %d bytes", kind, len(data))
		}
		var again bytes.Buffer
		if err := api.WriteFrame(&again, kind, data); err != nil {
			t.Fatal(err)
		}
		if read := len(sent) - r.Len(); !bytes.Equal(again.Bytes(), sent[:read]) {
			t.Errorf("of %q it reads %d %q", sent[:read], kind, data)
		}
	})
}

// TestReadFrame: what is cut off, too long or of no kind is an error.
func TestReadFrame(t *testing.T) {
	for _, raw := range []string{"", "\x01\x00\x00", "\x01\x00\x00\x00\x05abc", "\x04\x00\x00\x00\x00", "\x01\x00\x01\x00\x01"} {
		if kind, data, err := api.ReadFrame(bytes.NewReader([]byte(raw))); err == nil {
			t.Errorf("%q is the frame %d %q", raw, kind, data)
		}
	}
	long := append([]byte("\x01\x00\x01\x00\x00"), make([]byte, api.MaxFrame)...)
	if _, data, err := api.ReadFrame(bytes.NewReader(long)); err != nil || len(data) != api.MaxFrame {
		t.Errorf("the longest: %d bytes, %v", len(data), err)
	}
	longer := append([]byte("\x01\x00\x01\x00\x01"), make([]byte, api.MaxFrame+1)...)
	if _, data, err := api.ReadFrame(bytes.NewReader(longer)); err == nil {
		t.Errorf("one longer than the longest is read: %d bytes", len(data))
	}
	if err := api.WriteFrame(io.Discard, api.FrameOutput, make([]byte, api.MaxFrame+1)); err == nil {
		t.Error("one longer than the longest is written")
	}
}
