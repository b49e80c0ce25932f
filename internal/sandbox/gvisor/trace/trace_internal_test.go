// SPDX-License-Identifier: Apache-2.0

//go:build linux

package trace

import (
	"encoding/binary"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"gvisor.dev/gvisor/pkg/sentry/seccheck/points/points_go_proto"

	"remit/internal/sandbox"
)

func packet(t *testing.T, kind points_go_proto.MessageType, dropped uint32, m proto.Message) []byte {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8, 8+len(payload))
	binary.LittleEndian.PutUint16(b, 8)
	binary.LittleEndian.PutUint16(b[2:], uint16(kind))
	binary.LittleEndian.PutUint32(b[4:], dropped)
	return append(b, payload...)
}

// TestLostEvidence: what the kernel could not send, and what cannot be read, is counted; the lists are bounded.
func TestLostEvidence(t *testing.T) {
	tr := &Trace{}
	for n := range sandbox.MostSeen + 10 {
		tr.note(packet(t, points_go_proto.MessageType_MESSAGE_SENTRY_EXEC, uint32(n/10), &points_go_proto.ExecveInfo{BinaryPath: fmt.Sprintf("/bin/%d", n)}))
	}
	tr.note(nil)
	tr.note([]byte{255, 255, 3, 0, 0, 0, 0, 0})
	tr.note([]byte{8, 0, 3, 0, 0, 0, 0, 0, 0xff})
	a := tr.Activity()
	if want := uint64((sandbox.MostSeen+9)/10 + 3); a.Dropped != want || a.Executed != sandbox.MostSeen+10 || len(a.Programs) != sandbox.MostSeen || a.More != 10 {
		t.Errorf("want %d dropped: %+v", want, a)
	}
}

// FuzzNote: whatever a tool's kernel sends is bounded and counted.
func FuzzNote(f *testing.F) {
	f.Add([]byte{8, 0, 3, 0, 1, 0, 0, 0})
	f.Add([]byte{8, 0, 10, 0, 0, 0, 0, 0, 0x32, 2, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		tr := &Trace{}
		tr.note(b)
		for _, s := range append(tr.seen.Programs, tr.seen.Addresses...) {
			if len(s) > 4*longest {
				t.Errorf("%d bytes are kept", len(s))
			}
		}
	})
}
