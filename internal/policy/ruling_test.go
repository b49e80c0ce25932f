// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"testing"

	"remit"
)

// FuzzConvert feeds the reader of rule results any JSON document. What it takes must be inside the bounds.
func FuzzConvert(f *testing.F) {
	for _, s := range []string{`{"deny":["x"]}`, `{"ttl":60,"rows":5.0,"columns":["a"]}`, `{"ttl":"1h30m"}`, `{"tier":"vm","obligations":[7]}`, `{"ttl":"999999h999999h999999h"}`, `{"rows":1e300}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var doc map[string]any
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if dec.Decode(&doc) != nil {
			return
		}
		g, err := convert(&rules{}, doc)
		if _, said := doc["deny"]; err == nil && said && len(doc["deny"].([]any)) > 0 && len(g.denied) == 0 {
			t.Error("a denial got lost")
		}
		if g.ttl < 0 || g.ttl > maxTTL || g.rows != nil && (*g.rows < 0 || *g.rows > maxRows) {
			t.Errorf("out of bounds: %+v", g)
		}
	})
}

// TestUnknownOutputFaults: a name that compiling let through would still deny.
func TestUnknownOutputFaults(t *testing.T) {
	if _, err := convert(&rules{}, map[string]any{"allow": true}); err == nil {
		t.Error("an unknown output was ignored")
	}
}

// FuzzImage holds the fast reader of images against the parser.
func FuzzImage(f *testing.F) {
	tail := "@" + string(remit.DigestOf(nil))
	for _, s := range []string{"foo", "registry.example/team/foo", "a//b", "a.-b", "a/", "host:5000/x", "x:v1", "A/b", "a--b", ""} {
		f.Add(s + tail)
	}
	f.Add("foo@sha256:00")
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := imageOf(remit.StringValue(s), true)
		want, err := remit.ParseImage(s)
		if ok != (err == nil && want.Digest != "") || ok && got != want {
			t.Errorf("%q: %+v %v, parser %+v %v", s, got, ok, want, err)
		}
	})
}

// FuzzDecimals holds the comparison of decimals against math/big.
func FuzzDecimals(f *testing.F) {
	f.Add("7.0", "7")
	f.Add("-0.5", "-0.49")
	f.Add("1e3", "999.9")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, errX := remit.NumberValue(a)
		y, errY := remit.NumberValue(b)
		if errX != nil || errY != nil {
			return
		}
		if want, _ := x.Compare(y); compareDecimals(x.Text(), y.Text()) != want {
			t.Errorf("%s and %s: %d, want %d", x, y, compareDecimals(x.Text(), y.Text()), want)
		}
	})
}

// TestExactNumbersAreExactInOPA: what exact admits, OPA orders as math/big does. See exact.
func TestExactNumbersAreExactInOPA(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	random := func() remit.Value {
		s := strconv.FormatInt(r.Int64()>>r.IntN(63), 10)
		switch r.IntN(4) {
		case 0:
			s = strconv.FormatInt(r.Int64N(1e6), 10) + "." + strconv.FormatInt(r.Int64N(1e8), 10)
		case 1:
			s = "-" + s
		}
		return num(s)
	}
	for range 20000 {
		a, b := random(), random()
		if r.IntN(2) == 0 { // a neighbour
			n, err := strconv.ParseInt(a.Text(), 10, 64)
			if err == nil {
				b = num(strconv.FormatInt(n-1+r.Int64N(3), 10))
			}
		}
		if !exact(a.Text()) || !exact(b.Text()) {
			continue
		}
		want, _ := a.Compare(b)
		if got := inputValue(a).Value.Compare(inputValue(b).Value); got != want {
			t.Fatalf("%s and %s: OPA %d, want %d", a, b, got, want)
		}
	}
}

// TestReasonsFromOutsideStand: what policy could not know is handed in, and gives the recorded answer; what it could know is not.
func TestReasonsFromOutsideStand(t *testing.T) {
	w := newWorld(2, true)
	plan := mustCompile(t, w.cfg)
	query := opaPolicy(t, plan)
	reason := func(code remit.ReasonCode, of string) remit.Reason { return remit.Reason{Code: code, Of: of} }
	for _, reasons := range [][]remit.Reason{
		{reason(remit.ReasonConflict, "")}, {reason(remit.ReasonTarget, "target prod")}, {reason(remit.ReasonFault, "")},
		{reason(remit.ReasonApproval, "evidence.approval"), reason(remit.ReasonRule, "rules.fault")}, {reason(remit.ReasonArgument, "arguments")},
	} {
		d := remit.Decision{Policy: plan.Digest(), Reasons: reasons}
		input, err := Input(&d, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := ask1(t, query, input).String(), recorded(&d).String(); got != want {
			t.Errorf("rego %s, recorded %s", got, want)
		}
	}
	for _, r := range []remit.Reason{reason(remit.ReasonFault, "evidence.scan"), reason(remit.ReasonArgument, "where.arguments"), reason(remit.ReasonEvidenceStale, "evidence.scan")} {
		if isOutside(r) {
			t.Errorf("%v would be taken on trust", r)
		}
	}
}
