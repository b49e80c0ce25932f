// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/authzen"
)

// even allows targets that end in an even digit.
func even(req *remit.Request) (remit.Decision, error) {
	switch req.Target[len(req.Target)-1] {
	case '0', '2', '4', '6', '8':
		return remit.Decision{Effect: remit.Allow}, nil
	case 'x':
		return remit.Decision{}, errors.New("fault")
	case 'p':
		panic("in the line")
	}
	return remit.Decision{}, nil
}

const defaults = `"subject":{"type":"agent","id":"spiffe://company.com/agent/deploy"},"action":{"name":"kubernetes.apply"}`

func targets(ids ...string) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString(`{"resource":{"type":"kubernetes","id":"` + id + `"}}`)
	}
	return b.String()
}

func decisions(r reply) string {
	out := ""
	for _, e := range r.Evaluations {
		switch {
		case e.Context.Error != nil && !*e.Decision:
			out += "!"
		case *e.Decision:
			out += "+"
		default:
			out += "-"
		}
	}
	return out
}

// Pitfall 2: one bad item is that item's; short cuts end with the deciding item; answers stand in the order of requests.
func TestBatchSemantics(t *testing.T) {
	f := newFixture(t, even)
	for _, c := range []struct{ options, items, want string }{
		{``, targets("0", "1", "2", "3"), "+-+-"},
		{`,"options":{}`, targets("1"), "-"},
		{`,"options":{"evaluations_semantic":"execute_all","other":1}`, targets("1", "0"), "-+"},
		{`,"options":{"evaluations_semantic":"deny_on_first_deny"}`, targets("0", "2", "1", "4"), "++-"},
		{`,"options":{"evaluations_semantic":"deny_on_first_deny"}`, targets("0", "2"), "++"},
		{`,"options":{"evaluations_semantic":"permit_on_first_permit"}`, targets("1", "3", "2", "5"), "--+"},
		{`,"options":{"evaluations_semantic":"permit_on_first_permit"}`, targets("1"), "-"},
		{``, targets("0") + `,{},7,null,{"resource":{"type":"kubernetes"}},{"resource":{"type":"kubernetes","id":5}},` + targets("2"), "+!!!!!+"},
		{`,"options":{"evaluations_semantic":"deny_on_first_deny"}`, targets("0") + `,{},` + targets("2"), "+!"},
		{`,"options":{"evaluations_semantic":"permit_on_first_permit"}`, `{},` + targets("1", "2", "4"), "!-+"},
		{``, targets("0", "x", "2", "p", "4"), "+!+!+"},
	} {
		w := f.post("/pep/gate", batch, `{`+defaults+`,"evaluations":[`+c.items+`]`+c.options+`}`)
		if got := decisions(read(t, w)); got != c.want {
			t.Errorf("%s %s: got %s, want %s: %s", c.options, c.items, got, c.want, w.Body)
		}
	}
}

func TestBatchKeepsOrder(t *testing.T) {
	f := newFixture(t, even)
	var ids []string
	want := ""
	for i := range 200 {
		ids = append(ids, string(rune('0'+i%10)))
		want += string("+-"[i%2])
	}
	if got := decisions(read(t, f.post("/pep/gate", batch, `{"evaluations":[`+targets(ids...)+`],`+defaults+`}`))); got != want {
		t.Errorf("got %s", got)
	}
}

// Pitfall 2: an item's part replaces the default whole: the default's properties do not shine through.
func TestBatchPartsOverrideAsWholes(t *testing.T) {
	f := newFixture(t, allow)
	body := `{` + defaults + `,"resource":{"type":"kubernetes","id":"a","properties":{"namespace":"production"}},"context":{"stage":"deploy"},
		"evaluations":[{"resource":{"type":"kubernetes","id":"b"}},{"context":{"permission":"p"}},{"resource":{"type":"kubernetes"}},{"action":null,"subject":null}]}`
	got := read(t, f.post("/pep/gate", batch, body))
	if decisions(got) != "++!+" {
		t.Fatalf("%+v", got)
	}
	narrowed := 0
	for _, req := range f.line.asked {
		if req.Permission == "p" {
			narrowed++
		}
		_, named := req.Args["namespace"]
		switch {
		case req.Target == "b" && (named || req.Stage != "deploy"):
			t.Errorf("resource was merged: %+v", req)
		case req.Permission == "p" && (req.Stage != "" || !named):
			t.Errorf("context was merged: %+v", req)
		}
	}
	if narrowed != 1 {
		t.Error("an item's context did not replace the default")
	}
}

// Pitfall 2: none or an empty list of evaluations is a single evaluation.
func TestEmptyBatchIsSingle(t *testing.T) {
	f := newFixture(t, even)
	for _, items := range []string{``, `,"evaluations":[]`, `,"evaluations":null`} {
		body := `{` + defaults + `,"resource":{"type":"kubernetes","id":"2"}` + items + `}`
		if got := read(t, f.post("/pep/gate", batch, body)); got.Decision == nil || !*got.Decision || got.Evaluations != nil {
			t.Errorf("%s: %+v", items, got)
		}
	}
}

func TestBadBatches(t *testing.T) {
	f := newFixture(t, even)
	for name, body := range map[string]string{
		"no list":           `{` + defaults + `,"evaluations":{}}`,
		"unknown semantic":  `{` + defaults + `,"evaluations":[` + targets("0") + `],"options":{"evaluations_semantic":"any"}}`,
		"semantic a number": `{` + defaults + `,"evaluations":[` + targets("0") + `],"options":{"evaluations_semantic":1}}`,
		"options a list":    `{` + defaults + `,"evaluations":[` + targets("0") + `],"options":[]}`,
		"bad default":       `{"subject":7,"evaluations":[` + targets("0") + `]}`,
		"name twice inside": `{` + defaults + `,"evaluations":[{"resource":{},"resource":{}}]}`,
		"too many":          `{` + defaults + `,"evaluations":[` + strings.Repeat("{},", 256) + `{}]}`,
		"broken item":       `{` + defaults + `,"evaluations":[{]}`,
	} {
		if w := f.post("/pep/gate", batch, body); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if len(f.line.asked) != 0 {
		t.Errorf("the line was asked %d times", len(f.line.asked))
	}
}

// S35: quotas hold before the line, a batch pays for its items, and one caller's quota is not another's.
func TestQuota(t *testing.T) {
	now := time.Now()
	f := newFixture(t, allow, func(c *authzen.Config) {
		c.Now = func() time.Time { return now }
		c.Points = gateway.NewQuota(gateway.Limits{Rate: 1, Burst: 5, Concurrent: 2})
		c.Agents = gateway.NewQuota(gateway.Limits{Rate: 1, Burst: 1, Concurrent: 1})
	})
	items := func(n int) string {
		return `{` + defaults + `,"evaluations":[` + targets(strings.Split(strings.Repeat("0 ", n-1)+"0", " ")...) + `]}`
	}
	if w := f.post("/pep/gate", batch, items(6)); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("a batch beyond the quota: %d", w.Code)
	}
	if n := len(f.line.asked); n != 0 {
		t.Errorf("the line was asked %d times", n)
	}
	if w := f.post("/pep/gate", batch, items(4)); w.Code != http.StatusOK {
		t.Errorf("a batch within the quota: %d", w.Code)
	}
	if w := f.post("/pep/gate", single, sound); w.Code != http.StatusTooManyRequests {
		t.Errorf("after it: %d", w.Code)
	}
	if w := f.post("/pep/plain", single, sound); w.Code != http.StatusOK {
		t.Errorf("another enforcement point: %d", w.Code)
	}
	if w := f.post("/agent/deploy", single, sound); w.Code != http.StatusOK {
		t.Errorf("an agent: %d", w.Code)
	}
	now = now.Add(time.Second)
	if w := f.post("/pep/gate", single, sound); w.Code != http.StatusOK {
		t.Errorf("a second later: %d", w.Code)
	}
}
