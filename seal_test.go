// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
)

// valued is a decision in which every value that is to be sealed carries a marker.
func valued() remit.Decision {
	mark := func(n int) string { return fmt.Sprintf("value-%d-marker", n) }
	return remit.Decision{ID: "dec-x", At: time.Unix(1, 0), Agent: "agent/deploy", Action: "postgres.select", Target: "db", Policy: "sha256:p",
		Args: remit.Args{"customer": remit.StringValue(mark(1)), "columns": remit.ListValue(remit.StringValue(mark(2))),
			"dotted.name": remit.ObjectValue(map[string]remit.Value{"x": remit.StringValue(mark(3))})},
		Params:  map[string]remit.Value{"customer": remit.StringValue(mark(4)), "n": remit.IntValue(7)},
		Reasons: []remit.Reason{{Code: remit.ReasonArgument, Of: "where.customer", Want: mark(5), Got: mark(6)}, {Code: remit.ReasonFault}},
		Lacking: []remit.Lack{{Need: 1, Kind: "scan", Reason: remit.Reason{Code: remit.ReasonEvidenceStale, Got: mark(7)}}},
		Evidence: []remit.Evidence{{ID: "ev-x", Kind: "ticket", Source: "desk", Name: mark(8), Subjects: []remit.Digest{remit.Digest(mark(9))},
			Fields: map[string]string{"customer": mark(10)}, Digest: "sha256:d"}},
	}
}

func seal(d *remit.Decision, s *remit.Seal) remit.Entry {
	e := remit.Event{At: d.At, Kind: remit.EventDecision, Data: d.AppendSealed(nil, s)}
	return remit.Entry{Seq: 9, Body: e.AppendJSON(nil, 9), Payload: s.Payload, Private: s.Private}
}

// S33: the entry holds no value; with the payload it reads as if nothing had been sealed.
func TestSealedValueIsInNoEntry(t *testing.T) {
	d := valued()
	e := seal(&d, &remit.Seal{})
	if bytes.Contains(e.Body, []byte("marker")) || !json.Valid(e.Body) {
		t.Fatalf("%s", e.Body)
	}
	plain := remit.Event{At: d.At, Kind: remit.EventDecision, Data: d.AppendJSON(nil)}
	o := e.Open()
	if want := plain.AppendJSON(nil, 9); !bytes.Equal(o.Body, want) || o.Erased != nil || o.Private != nil {
		t.Errorf("opened:\n%s\nwant:\n%s\n%v %v", o.Body, want, o.Erased, o.Private)
	}
	e.Payload = nil
	o = e.Open()
	var back struct{ Data remit.Decision }
	if err := json.Unmarshal(o.Body, &back); err != nil || bytes.Contains(o.Body, []byte("marker")) || len(o.Erased) != 11 || o.Private != nil {
		t.Errorf("erased: %v %v\n%s", err, o.Erased, o.Body)
	}
	if got := back.Data.Args["customer"].Text(); got != "[erased]" {
		t.Errorf("an erased argument reads %q", got)
	}
}

// S33: each value can be disclosed alone, and is checked against the entry and nothing else.
func TestDisclosureIsChecked(t *testing.T) {
	d := valued()
	e := seal(&d, &remit.Seal{})
	leaf := remit.Entry{Seq: e.Seq, Body: e.Body}
	all := e.Disclosures()
	if len(all) != 11 {
		t.Fatalf("%d disclosures", len(all))
	}
	var paths []string
	for _, one := range all {
		got, err := leaf.Check(one.Text)
		if err != nil || got.Path != one.Path || !bytes.Equal(got.Value, one.Value) {
			t.Errorf("%s: %v", one.Path, err)
		}
		paths = append(paths, one.Path)
	}
	for _, want := range []string{"args.customer", "args.dotted.name", "params.n", "reasons.0.want", "lacking.0.reason.got", "evidence.0.fields"} {
		if !slices.Contains(paths, want) {
			t.Errorf("no disclosure of %s in %v", want, paths)
		}
	}
	text, _ := base64.RawURLEncoding.DecodeString(all[0].Text)
	for name, forged := range map[string]string{
		"another value":     strings.Replace(string(text), "value-", "other-", 1),
		"another place":     strings.Replace(string(text), "args.", "params.", 1),
		"another salt":      strings.Replace(string(text), text2(text), "AAAAAAAAAAAAAAAAAAAAAA", 1),
		"more than a value": strings.Replace(string(text), "]", ",1]", 1),
	} {
		if got, err := leaf.Check(base64.RawURLEncoding.EncodeToString([]byte(forged))); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// The commitment of one place copied to another: the disclosure says where its value belongs.
	moved := strings.Replace(string(e.Body), `"customer":{"sd"`, `"client":{"sd"`, 1)
	if _, err := (remit.Entry{Body: []byte(moved)}).Check(all[slices.Index(paths, "args.customer")].Text); err == nil {
		t.Error("a commitment in another place is taken")
	}
	other := seal(&d, &remit.Seal{})
	if _, err := other.Check(all[0].Text); err == nil {
		t.Error("two entries have one salt")
	}
}

func text2(disclosure []byte) string { return strings.Split(string(disclosure), `"`)[1] }

// S33: what is sensitive, and every text that quotes it, is private.
func TestSensitiveIsPrivate(t *testing.T) {
	d := valued()
	d.Reasons[0].Want = "not " + d.Args["customer"].Text()
	s := &remit.Seal{Sensitive: map[string]bool{"customer": true}}
	s.Hide(d.Args)
	s.Hide(d.Params)
	e := seal(&d, s)
	o := e.Open()
	for _, n := range []string{"value-1-", "value-4-"} {
		if bytes.Contains(o.Body, []byte(n)) || bytes.Contains(decoded(e.Payload), []byte(n)) {
			t.Errorf("%s is in clear: %s", n, o.Body)
		}
	}
	if want := []string{"args.customer", "params.customer", "reasons.0.want"}; !slices.Equal(o.Private, want) || o.Erased != nil {
		t.Errorf("private %v, erased %v", o.Private, o.Erased)
	}
	if !bytes.Contains(e.Reveal().Open().Body, []byte("value-1-")) || len(e.Reveal().Disclosures()) != 11 {
		t.Error("it cannot be revealed")
	}
}

func decoded(payload []byte) (out []byte) {
	for _, text := range bytes.Split(payload, []byte{'~'}) {
		b, _ := base64.RawURLEncoding.DecodeString(string(text))
		out = append(out, b...)
	}
	return out
}

// Every version stays readable: the golden files are entries as they were written.
func TestGoldenEntries(t *testing.T) {
	for _, name := range []string{"entry-v1", "entry-v2"} {
		body, err := os.ReadFile(filepath.Join("testdata", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		payload, _ := os.ReadFile(filepath.Join("testdata", name+".payload"))
		e := remit.Entry{Seq: 9, Body: bytes.TrimSpace(body), Payload: bytes.TrimSpace(payload)}
		var got struct{ Data remit.Decision }
		if err := json.Unmarshal(e.Open().Body, &got); err != nil {
			t.Fatal(err)
		}
		want := valued()
		if a, b := got.Data.AppendJSON(nil), want.AppendJSON(nil); !bytes.Equal(a, b) {
			t.Errorf("%s:\n%s\n%s", name, a, b)
		}
	}
	v1 := remit.Entry{Body: []byte(`{"v":1,"seq":1,"data":{"args":{"x":{"sd":"0123456789012345678901234567890123456789012"}}}}`)}
	if o := v1.Open(); !bytes.Equal(o.Body, v1.Body) || o.Erased != nil {
		t.Errorf("an argument of version 1 is taken for a commitment: %s", o.Body)
	}
}

func BenchmarkSeal(b *testing.B) {
	d := remit.Decision{Args: remit.Args{"namespace": remit.StringValue("production"), "kind": remit.StringValue("Deployment"),
		"name": remit.StringValue("foo"), "image": remit.StringValue("registry.company.com/foo@sha256:0123456789012345678901234567890123456789012345678901234567890123")},
		Params: map[string]remit.Value{"app": remit.StringValue("foo"), "image": remit.StringValue("registry.company.com/foo@sha256:0123")}}
	for name, sealed := range map[string]bool{"clear": false, "sealed": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var s *remit.Seal
				if sealed {
					s = &remit.Seal{Payload: make([]byte, 0, 1024)}
				}
				d.AppendSealed(make([]byte, 0, 1024), s)
			}
		})
	}
}
