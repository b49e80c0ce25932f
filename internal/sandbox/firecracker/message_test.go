// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"remit/internal/sandbox"
)

// sent is a connection on which the other side said everything already.
type sent struct {
	*strings.Reader
	bytes.Buffer
}

func (s *sent) Read(b []byte) (int, error) { return s.Reader.Read(b) }
func (s *sent) Close() error               { return nil }

// FuzzReport: whatever a machine sends, which is not trusted, a report is read whole or not at all, from a line that is no longer than it
// may be, and is what would be sent for it.
func FuzzReport(f *testing.F) {
	for _, r := range []report{{Hello: protocol}, {Built: true}, {Full: true, Kills: 3}, {Exit: &sandbox.Status{Code: 3}}, {Exit: &sandbox.Status{Code: 137, Signal: 9}}, {Fault: "mount: no such device"}} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b) + "\n")
		f.Add(string(b) + "\n" + string(b) + "\n")
		f.Add(string(b[:len(b)-1]))
	}
	for _, raw := range []string{"", "\n", "null\n", "[]\n", `{"hello":"1"}`, `{"hello":1}{"hello":2}`, `{"kills":-1}`, `{"kills":18446744073709551616}`, `{"exit":{}}`, `{"exit":null}`,
		`{"HELLO":1,"hello":2}`, "\xff\xfe", "{\"fault\":\"\xff\"}", strings.Repeat("[", 20_000)} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, said string) {
		received[report](t, said, maxReport)
	})
}

// FuzzOrder: the same of orders, which a guest reads.
func FuzzOrder(f *testing.F) {
	for _, o := range []order{{Build: &build{Files: true, Scratch: 64 << 20}}, {Run: &run{Command: []string{"/bin/true"}, Env: []string{"HOME=/tmp"}, Processes: 64,
		Sockets: []string{"egress.sock"}, Files: []sharedFile{{Name: "token", Data: []byte{0, 1}}}}}, {}} {
		b, err := json.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b) + "\n")
		f.Add(string(b) + "\n{}\n")
	}
	for _, raw := range []string{"", "{}", `{"run":{"files":[{"data":"%"}]}}`, `{"run":{"files":[null]}}`, `{"build":{"scratch":1e99}}`, `{"run":{"command":"x"}}`, `{"build":{},"run":{}}`} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, said string) {
		received[order](t, said, maxOrder)
	})
}

// received reads all messages of what was said, and looks at each.
func received[T any](t *testing.T, said string, most int) {
	conn := &sent{Reader: strings.NewReader(said)}
	l := newLines(conn, most)
	for n := 0; ; n++ {
		if n > len(said) {
			t.Fatal("there are more messages than bytes")
		}
		var got, again T
		if err := l.receive(&got); err != nil {
			return // the caller ends the machine
		}
		if read := len(l.scan.Bytes()); read > most {
			t.Fatalf("a message of %d bytes", read)
		}
		conn.Buffer.Reset()
		if err := l.send(got); err != nil {
			t.Fatal(err)
		}
		line := conn.Buffer.String()
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("it is sent as %q", line)
		}
		if err := json.Unmarshal([]byte(line), &again); err != nil || !reflect.DeepEqual(got, again) {
			t.Fatalf("%+v is sent as %s, read as %+v, %v", got, line, again, err)
		}
	}
}

// TestLongLine: a line that is longer than it may be is an error, and not kept.
func TestLongLine(t *testing.T) {
	long := `{"fault":"` + strings.Repeat("x", maxReport) + `"}` + "\n"
	if err := newLines(&sent{Reader: strings.NewReader(long)}, maxReport).receive(new(report)); err == nil {
		t.Error("it is read")
	}
}
