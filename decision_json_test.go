// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"remit"
)

// drawInto fills every field that encoding/json writes, by reflection: a field that is added to Decision and forgotten in
// AppendJSON fails here.
func drawInto(t *rapid.T, v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		if rapid.Bool().Draw(t, "zero") {
			return
		}
		zone := time.FixedZone("", 3600*rapid.IntRange(-11, 13).Draw(t, "zone"))
		*x = time.Unix(rapid.Int64Range(-1e9, 1e10).Draw(t, "s"), rapid.Int64Range(0, 1e9-1).Draw(t, "ns")).In(zone)
		return
	case *remit.Effect:
		*x = remit.Effect(rapid.IntRange(0, 2).Draw(t, "effect"))
		return
	case *remit.Severity:
		*x = remit.Severity(rapid.IntRange(0, 5).Draw(t, "severity"))
		return
	case *remit.Value:
		*x = drawValue(t, 3)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(drawString(t))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "number") * int64(rapid.IntRange(0, 1).Draw(t, "some")))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("json") != "-" {
				drawInto(t, v.Field(i))
			}
		}
	case reflect.Slice:
		for range rapid.IntRange(0, 3).Draw(t, "len") {
			e := reflect.New(v.Type().Elem()).Elem()
			drawInto(t, e)
			v.Set(reflect.Append(v, e))
		}
	case reflect.Map:
		for range rapid.IntRange(0, 3).Draw(t, "len") {
			e := reflect.New(v.Type().Elem()).Elem()
			drawInto(t, e)
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			v.SetMapIndex(reflect.ValueOf(drawString(t)), e)
		}
	default:
		t.Fatalf("no way to draw a %s", v.Type())
	}
}

func drawString(t *rapid.T) string {
	return rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"<a&b>", "\u2028", "\x00\x1f\"\\", "ü"})).Draw(t, "text")
}

func drawValue(t *rapid.T, depth int) remit.Value {
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 1:
		return remit.BoolValue(rapid.Bool().Draw(t, "bool"))
	case 2:
		return remit.IntValue(rapid.Int64().Draw(t, "int"))
	case 3:
		if depth > 0 {
			return remit.ListValue(drawValue(t, depth-1), drawValue(t, depth-1))
		}
	case 4:
		if depth > 0 {
			return remit.ObjectValue(map[string]remit.Value{drawString(t): drawValue(t, depth-1), "b": drawValue(t, depth-1)})
		}
	case 5:
		return remit.StringValue(drawString(t))
	}
	return remit.Value{}
}

// TestDecisionAppendJSON: encoding/json writes the same meaning, reads it back to the same Decision, and what was read is
// written to the same bytes.
func TestDecisionAppendJSON(t *testing.T) {
	sameValues := cmp.Comparer(func(a, b remit.Value) bool { return a.Equal(b) })
	sameTimes := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })
	rapid.Check(t, func(t *rapid.T) {
		var d remit.Decision
		drawInto(t, reflect.ValueOf(&d).Elem())
		for i := range d.Evidence { // encoding/json cannot tell it from absent either
			d.Evidence[i].Until = d.Evidence[i].Until.Round(0)
		}
		d.Until = d.Until.Round(0)
		got := d.AppendJSON([]byte("x"))[1:]
		d.At, d.Until = d.At.UTC(), d.Until.UTC()
		for i := range d.Evidence {
			e := &d.Evidence[i]
			e.Made, e.Verified, e.Until = e.Made.UTC(), e.Verified.UTC(), e.Until.UTC()
		}
		std, err := json.Marshal(&d)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatalf("%v in %s", err, got)
		}
		if err := json.Unmarshal(std, &b); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, a); diff != "" {
			t.Fatalf("another meaning than encoding/json's (-std +ours):\n%s", diff)
		}
		var ours, theirs remit.Decision
		if err := json.Unmarshal(got, &ours); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(std, &theirs); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(theirs, ours, sameValues, sameTimes); diff != "" {
			t.Fatalf("read back to another decision:\n%s", diff)
		}
		if again := ours.AppendJSON(nil); !bytes.Equal(again, got) {
			t.Fatalf("not canonical:\n%s\n%s", got, again)
		}
	})
}

func sampleDecision() *remit.Decision {
	at := time.Date(2026, 3, 4, 5, 6, 7, 890, time.FixedZone("", 3600))
	return &remit.Decision{ID: "dec-aaaaaaaaaaaaaaaaaaaaaaaaaa", At: at, Effect: remit.Allow, Caller: "spiffe://company.com/agent/deploy",
		Credential: "3f", Level: "user", Agent: "agent/deploy", Action: "kubernetes.apply", Target: "cluster", Run: "run-aaaaaaaaaaaaaaaaaaaaaaaaaa",
		Args:       remit.Args{"namespace": remit.StringValue("production"), "name": remit.StringValue("<foo>"), "replicas": remit.IntValue(3)},
		Permission: remit.PermissionRef{Workflow: "deploy", Stage: "deploy", Name: "apply"},
		Params:     map[string]remit.Value{"app": remit.StringValue("<foo>")},
		Evidence: []remit.Evidence{{ID: "ev-aaaaaaaaaaaaaaaaaaaaaaaaaaa", Kind: remit.EvidenceScan, Source: "trivy", Worst: remit.SeverityLow,
			Subjects: []remit.Digest{"sha256:00"}, Made: at, Verified: at, Fields: map[string]string{"b": "2", "a": "1"}, Digest: "sha256:01"}},
		TTL: 5 * time.Minute, Limits: map[string]int64{"rows": 5}, WorkflowDigest: "sha256:02", Policy: "sha256:03", Via: "authzen"}
}

// TestDecisionGolden: these bytes stand in ledgers; a change of them needs a new version of the event.
func TestDecisionGolden(t *testing.T) {
	const want = `{"id":"dec-aaaaaaaaaaaaaaaaaaaaaaaaaa","at":"2026-03-04T04:06:07.00000089Z","effect":"allow",` +
		`"caller":"spiffe://company.com/agent/deploy","credential":"3f","level":"user","agent":"agent/deploy","action":"kubernetes.apply",` +
		`"target":"cluster","args":{"name":"<foo>","namespace":"production","replicas":3},"run":"run-aaaaaaaaaaaaaaaaaaaaaaaaaa",` +
		`"permission":{"workflow":"deploy","stage":"deploy","permission":"apply"},"params":{"app":"<foo>"},` +
		`"evidence":[{"id":"ev-aaaaaaaaaaaaaaaaaaaaaaaaaaa","kind":"scan","source":"trivy","subjects":["sha256:00"],"worst":"low",` +
		`"made":"2026-03-04T04:06:07.00000089Z","verified":"2026-03-04T04:06:07.00000089Z","fields":{"a":"1","b":"2"},"digest":"sha256:01"}],` +
		`"workflow_digest":"sha256:02","ttl":300000000000,"limits":{"rows":5},"policy":"sha256:03","via":"authzen"}`
	if diff := cmp.Diff(want, string(sampleDecision().AppendJSON(nil))); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkDecisionJSON(b *testing.B) {
	d := sampleDecision()
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = d.AppendJSON(make([]byte, 0, 1024))
		}
	})
	b.Run("encoding", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = json.Marshal(d)
		}
	})
}
