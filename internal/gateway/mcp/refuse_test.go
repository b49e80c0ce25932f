// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/gatewaytest"
	"remit/internal/gateway/mcp"
)

const modernMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}`

// send posts a body; heads are name, value, name, value.
func (w *world) send(path, body string, heads ...string) (int, string, http.Header) {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodPost, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	for i := 0; i < len(heads); i += 2 {
		if heads[i] == "Host" {
			req.Host = heads[i+1]
		} else if heads[i+1] == "" {
			req.Header.Del(heads[i])
		} else {
			req.Header.Add(heads[i], heads[i+1])
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

// modern posts a stateless request with the headers that it needs, which more may change.
func (w *world) modern(path, method, name, params string, more ...string) (int, string) {
	w.t.Helper()
	heads := map[string]string{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": method, "Mcp-Name": name}
	for i := 0; i < len(more); i += 2 {
		heads[more[i]] = more[i+1]
	}
	var list []string
	for k, v := range heads {
		if v != "" {
			list = append(list, k, v)
		}
	}
	body := `{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":{` + modernMeta + params + `}}`
	status, answer, _ := w.send(path, body, list...)
	return status, answer
}

func deskWorld(t *testing.T, stateless bool, change ...func(*mcp.Config)) *world {
	w := newWorld(t, change...)
	w.serveHTTP("desk", desk(stateless), stateless)
	w.view.Call["desk/greet"], w.view.Call["desk/ask"] = true, true
	return w
}

const greetAnn = `,"name":"greet","arguments":{"name":"Ann"}`

func TestCallers(t *testing.T) {
	tokens := accessTokens{}
	w := deskWorld(t, true, func(c *mcp.Config) { c.AccessTokens = tokens })
	w.Agents[w.ID("/agent/support")] = "agent/support"
	tokens["good"] = access{remit.Principal{ID: w.ID("/agent/support"), Expires: time.Now().Add(time.Minute)}, w.run}
	for _, c := range []struct {
		name, as, txn string
		heads         []string
		status        int
		reason        string
	}{
		{"certificate and run token", "/agent/support", "rt", nil, 200, ""},
		{"no run token", "/agent/support", "", nil, 200, "run_missing"},
		{"another's run token", "/agent/other", "rt", nil, 200, "run_token_invalid"},
		{"nobody", "", "rt", nil, 401, ""},
		{"access token", "", "", []string{"Authorization", "Bearer good"}, 200, ""},
		{"access token of another", "/agent/other", "", []string{"Authorization", "Bearer good"}, 401, ""},
		{"unknown access token", "", "", []string{"Authorization", "Bearer bad"}, 401, ""},
		{"both", "/agent/support", "", []string{"Authorization", "Bearer good", "Txn-Token", "rt"}, 401, ""},
		{"basic", "", "", []string{"Authorization", "Basic good"}, 401, ""},
	} {
		w.set(func() { w.as, w.txn = c.as, c.txn })
		heads := append([]string{"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "greet"}, c.heads...)
		status, body, head := w.send("/mcp/desk", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{`+modernMeta+greetAnn+`}}`, heads...)
		if status != c.status || c.reason != "" && !strings.Contains(body, `"code":"`+c.reason) || c.status == 200 && c.reason == "" && !strings.Contains(body, "hello Ann") {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
		if challenge := head.Get("WWW-Authenticate"); (status == 401) != strings.Contains(challenge, `resource_metadata="`+base+`/.well-known/oauth-protected-resource/mcp/desk"`) {
			t.Errorf("%s: %q", c.name, challenge)
		}
	}
	res, err := http.Get(w.url + "/.well-known/oauth-protected-resource/mcp/desk")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var m map[string]any
	if err := json.NewDecoder(res.Body).Decode(&m); err != nil || m["resource"] != base+"/mcp/desk" {
		t.Errorf("%v %v", err, m)
	}
}

// TestRefusedTokenIsDecided: S10. With another's run token whatever is asked is denied on record, also what otherwise nobody decides.
func TestRefusedTokenIsDecided(t *testing.T) {
	w := deskWorld(t, true)
	for method, params := range map[string]string{"tools/list": "", "server/discover": ""} {
		w.set(func() { w.as, w.txn, w.asked = "/agent/other", "rt", nil })
		_, body, _ := w.send("/mcp/desk", `{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{`+modernMeta+params+`}}`, "Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", method)
		w.set(func() {
			if len(w.asked) != 1 || len(w.asked[0].Refused) != 1 || !strings.Contains(body, "run_token_invalid") {
				t.Errorf("%s: %+v %s", method, w.asked, body)
			}
		})
	}
}

type access struct {
	p   remit.Principal
	run remit.RunID
}
type accessTokens map[string]access

func (a accessTokens) AccessToken(token, audience string, _ time.Time) (remit.Principal, remit.RunID, error) {
	t, ok := a[token]
	if !ok || audience != base+"/mcp" {
		return remit.Principal{}, "", &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no"}
	}
	return t.p, t.run, nil
}

func TestHostAndOrigin(t *testing.T) {
	w := deskWorld(t, true)
	for _, c := range []struct {
		host, origin string
		ok           bool
	}{
		{"", "", true}, {"remit.company.com", "", true}, {"evil.example", "", false}, {"localhost.evil.example", "", false},
		{"", "https://remit.company.com", true}, {"", "http://remit.company.com", false}, {"", "http://localhost:3000", true},
		{"", "https://evil.example", false}, {"", "null", false}, {"[::1]:80", "", true}, {"127.0.0.1.evil.example", "", false},
	} {
		more := []string{"Origin", c.origin}
		if c.host != "" {
			more = append(more, "Host", c.host)
		}
		status, _ := w.modern("/mcp/desk", "tools/list", "", "", more...)
		if (status == 200) != c.ok || !c.ok && status != 403 {
			t.Errorf("%+v: %d", c, status)
		}
	}
}

func TestBadMessages(t *testing.T) {
	w := deskWorld(t, true)
	long := strings.Repeat("x", 70<<10)
	for name, body := range map[string]string{
		"not JSON": `{`, "batch": `[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, "two": `{"jsonrpc":"2.0","id":1,"method":"ping"}{}`,
		"version": `{"jsonrpc":"1.0","id":1,"method":"ping"}`, "params a list": `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[]}`,
		"id null": `{"jsonrpc":"2.0","id":null,"method":"ping"}`, "id an object": `{"jsonrpc":"2.0","id":{},"method":"ping"}`,
		"both": `{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}`, "nothing": `{"jsonrpc":"2.0","id":1}`,
		"name twice":      `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","name":"secret","arguments":{}}}`,
		"twice by escape": `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","n\u0061me":"secret","arguments":{}}}`,
		"argument twice":  `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","arguments":{"name":"a","name":"b"}}}`,
		"method twice":    `{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{` + modernMeta + `}}`,
		"deep":            `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","arguments":{"name":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}}`,
		"long argument":   `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","arguments":{"name":"` + long + `"}}}`,
		"a list":          `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","arguments":["a"]}}`,
		"lone surrogate":  `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + `,"name":"greet","arguments":{"name":"\ud800"}}}`,
		"task":            `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + modernMeta + greetAnn + `,"task":{"ttl":1}}}`,
		"huge":            `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"x":"` + strings.Repeat(long, 20) + `"}}`,
	} {
		method := "tools/call"
		if strings.Contains(body, "tools/list") && !strings.Contains(body, "tools/call") {
			method = "tools/list"
		} else if strings.Contains(body, `"ping"`) {
			method = "ping"
		}
		status, answer, _ := w.send("/mcp/desk", body, "Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", method, "Mcp-Name", "greet")
		if status != 400 && status != 413 || !strings.Contains(answer, `"error"`) {
			t.Errorf("%s: %d %.200s", name, status, answer)
		}
	}
	if len(w.asked) != 0 {
		t.Errorf("the line was asked %d times", len(w.asked))
	}
}

func TestUnknownMethods(t *testing.T) {
	w := deskWorld(t, true)
	for _, m := range []string{"tasks/get", "tasks/list", "tasks/result", "tasks/cancel", "sampling/createMessage", "elicitation/create", "roots/list", "rpc.x", "Tools/Call", "ping", "logging/setLevel"} {
		if status, body := w.modern("/mcp/desk", m, "", ""); status != 404 || !strings.Contains(body, "-32601") {
			t.Errorf("%s: %d %s", m, status, body)
		}
	}
	if status, body := w.modern("/mcp", "resources/read", "x", `,"uri":"x"`); status != 404 || w.opened != 0 {
		t.Errorf("%d %s", status, body)
	}
}

func TestNullArgumentsAreAbsent(t *testing.T) {
	w := newWorld(t)
	seen := make(chan string, 2)
	s := sdk.NewServer(&sdk.Implementation{Name: "crm"}, nil)
	s.AddTool(&sdk.Tool{Name: "update", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		seen <- string(r.Params.Arguments)
		return &sdk.CallToolResult{}, nil
	})
	w.serveHTTP("crm", s, true)
	w.view.Call["crm/update"] = true
	w.modern("/mcp/crm", "tools/call", "update", `,"name":"update","arguments":{"id":1.50e1,"email":null,"more":{"a":null,"b":[null]}}`)
	if got := <-seen; got != `{"id":15,"more":{"b":[null]}}` {
		t.Errorf("the server saw %s", got)
	}
	if req := w.last(); string(req.Args.AppendJSON(nil)) != `{"id":15,"more":{"b":[null]}}` {
		t.Errorf("decided on %s", req.Args.AppendJSON(nil))
	}
}

func TestCallIsDecided(t *testing.T) {
	w := deskWorld(t, true)
	for _, effect := range []remit.Effect{remit.Deny, remit.Hold} {
		w.set(func() {
			w.answer = func(*remit.Request) remit.Decision {
				return remit.Decision{Effect: effect, Reasons: []remit.Reason{{Code: remit.ReasonArgument, Of: "where.name", Want: "hidden-limit"}}}
			}
		})
		status, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn)
		if status != 200 || !strings.Contains(body, `"isError":true`) || strings.Contains(body, "hello") || strings.Contains(body, "hidden") ||
			!strings.Contains(body, "argument_mismatch (where.name)") || !strings.Contains(body, gateway.Next(remit.ReasonArgument)) || (effect == remit.Hold) != strings.Contains(body, `"held":true`) {
			t.Errorf("%d %s", status, body)
		}
	}
	w.set(func() {
		w.answer = func(*remit.Request) remit.Decision { panic("unused") }
		w.answer = nil
		w.view.Call = map[string]bool{}
	})
	if _, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(body, "not_permitted") {
		t.Error(body)
	}
	if len(w.acts) != 0 {
		t.Errorf("%+v", w.acts)
	}
}

func TestListsAreCut(t *testing.T) {
	w := deskWorld(t, true)
	if _, body := w.modern("/mcp/desk", "tools/list", "", ""); strings.Contains(body, "secret") || !strings.Contains(body, "greet") {
		t.Error(body)
	}
	if _, body := w.modern("/mcp/desk", "resources/list", "", ""); !strings.Contains(body, "not_permitted") {
		t.Error(body)
	}
	w.servePipe("other", desk(false))
	for _, m := range []string{"tools/list", "server/discover"} {
		if _, body := w.modern("/mcp/other", m, "", ""); !strings.Contains(body, "not_permitted") {
			t.Errorf("%s: %s", m, body)
		}
	}
	w.set(func() { w.view.List["other"] = true })
	if _, body := w.modern("/mcp", "tools/list", "", ""); !strings.Contains(body, `"other__secret"`) || strings.Contains(body, `"desk__secret"`) || !strings.Contains(body, `"desk__greet"`) {
		t.Error(body)
	}
	if _, body := w.modern("/mcp", "tools/call", "other__secret", `,"name":"other__secret","arguments":{"name":"x"}`); !strings.Contains(body, "not_permitted") {
		t.Errorf("seeing is calling: %s", body)
	}
}

func TestListsArePrivate(t *testing.T) {
	w := deskWorld(t, true)
	w.view.List["desk"] = true
	for _, m := range []string{"tools/list", "server/discover", "prompts/list"} {
		if _, body := w.modern("/mcp/desk", m, "", ""); !strings.Contains(body, `"cacheScope":"private"`) || strings.Contains(body, "public") {
			t.Errorf("%s: %s", m, body)
		}
	}
}

func TestVersions(t *testing.T) {
	w := deskWorld(t, true)
	for _, v := range []string{"2027-01-01", "2026-07-29", "9", "zzz", "2025-11-26"} {
		if status, body := w.modern("/mcp/desk", "tools/list", "", "", "Mcp-Protocol-Version", v); status != 400 || !strings.Contains(body, "-32022") || !strings.Contains(body, `"supported":[`) {
			t.Errorf("%s: %d %s", v, status, body)
		}
	}
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{` + strings.Replace(modernMeta, "2026-07-28", "2025-11-25", 1) + `}}`
	if status, answer, _ := w.send("/mcp/desk", body, "Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list"); status != 400 || !strings.Contains(answer, "-32020") {
		t.Errorf("%d %s", status, answer)
	}
	sid := w.session("/mcp/desk")
	body = `{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{` + modernMeta + `}}`
	if status, answer, _ := w.send("/mcp/desk", body, "Mcp-Session-Id", sid); status != 400 || !strings.Contains(answer, "-32020") {
		t.Errorf("%d %s", status, answer)
	}
}

// session begins one of the older era.
func (w *world) session(path string) string {
	w.t.Helper()
	status, body, head := w.send(path, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
	if status != 200 || !strings.Contains(body, `"protocolVersion":"2025-03-26"`) {
		w.t.Fatalf("%d %s", status, body)
	}
	return head.Get("Mcp-Session-Id")
}

func TestHeadersEqualTheBody(t *testing.T) {
	w := newWorld(t)
	s := sdk.NewServer(&sdk.Implementation{Name: "db"}, nil)
	regions := make(chan string, 8)
	s.AddTool(&sdk.Tool{Name: "rows", InputSchema: json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer","x-mcp-header":"N"}}}`)},
		func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			regions <- r.Extra.Header.Get("Mcp-Param-Region")
			return &sdk.CallToolResult{}, nil
		})
	w.serveHTTP("db", s, true)
	w.view.Call["db/rows"] = true
	const params = `,"name":"rows","arguments":{"region":"eu","n":7}`
	for _, c := range []struct {
		more []string
		ok   bool
	}{
		{[]string{"Mcp-Param-Region", "eu", "Mcp-Param-N", "7"}, true},
		{[]string{"Mcp-Param-Region", "=?base64?ZXU=?=", "Mcp-Param-N", "7.0"}, true},
		{[]string{"Mcp-Param-Region", "us", "Mcp-Param-N", "7"}, false},
		{[]string{"Mcp-Param-Region", "eu", "Mcp-Param-N", "8"}, false},
		{[]string{"Mcp-Param-Region", "eu"}, false},
		{[]string{"Mcp-Param-Region", "eu", "Mcp-Param-N", "7", "Mcp-Method", "tools/list"}, false},
		{[]string{"Mcp-Param-Region", "eu", "Mcp-Param-N", "7", "Mcp-Method", ""}, false},
		{[]string{"Mcp-Param-Region", "eu", "Mcp-Param-N", "7", "Mcp-Name", "other"}, false},
		{[]string{"Mcp-Param-Region", "eu", "Mcp-Param-N", "7", "Mcp-Name", ""}, false},
	} {
		status, body := w.modern("/mcp/db", "tools/call", "rows", params, c.more...)
		if (status == 200) != c.ok || !c.ok && !strings.Contains(body, "-32020") {
			t.Errorf("%v: %d %s", c.more, status, body)
		}
	}
	for range 2 {
		if r := <-regions; r != "eu" {
			t.Errorf("the server read %q", r)
		}
	}
	if len(regions) != 0 {
		t.Error("a call with another header went through")
	}
}

func TestChangedToolIsHeld(t *testing.T) {
	w := deskWorld(t, true)
	raw := json.RawMessage(`{"name":"greet","description":"as reviewed","inputSchema":{"type":"object"}}`)
	digest, err := mcp.DigestTool(raw)
	if err != nil {
		t.Fatal(err)
	}
	w.set(func() {
		w.pins["tool/desk"] = &mcp.Pins{Tools: map[string]mcp.Pin{"greet": {Digest: digest, Tool: raw}}}
	})
	if _, body := w.modern("/mcp/desk", "tools/list", "", ""); strings.Contains(body, "says hello") {
		t.Errorf("a changed description is shown: %s", body)
	}
	if _, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(body, "target_unfit (pins)") || strings.Contains(body, "hello Ann") {
		t.Errorf("a changed tool is called: %s", body)
	}
	if req := w.last(); len(req.Refused) != 1 {
		t.Errorf("not on record: %+v", req)
	}
	good, err := w.client("/mcp/desk", true, nil).ListTools(context.Background(), nil)
	if err != nil || len(good.Tools) != 0 {
		t.Errorf("%v %+v", err, good)
	}
	w.set(func() { delete(w.pins, "tool/desk") })
	_, body := w.modern("/mcp/desk", "tools/list", "", "")
	var list struct {
		Result struct {
			Tools []json.RawMessage `json:"tools"`
		} `json:"result"`
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Result.Tools) != 2 {
		t.Fatal(body)
	}
	raw = list.Result.Tools[1]
	digest, _ = mcp.DigestTool(raw)
	w.set(func() {
		w.pins["tool/desk"] = &mcp.Pins{Tools: map[string]mcp.Pin{"greet": {Digest: digest, Tool: raw}}}
	})
	if _, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(body, "hello Ann") {
		t.Error(body)
	}
	if _, err := mcp.ParsePins([]byte(`{"tools":{"greet":{"digest":"` + string(digest) + `","tool":{"name":"greet","description":"evil"}}}}`)); err == nil {
		t.Error("a pin that is not what its digest says was read")
	}
}

// hostile is a server that answers as it likes.
func (w *world) hostile(answer func(method, id string, rw http.ResponseWriter)) {
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var m struct {
			Method string          `json:"method"`
			ID     json.RawMessage `json:"id"`
		}
		b, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(b, &m)
		if r.Header.Get("Authorization") != "" || r.Header.Get("Txn-Token") != "" || bytes.Contains(b, []byte("rt")) && bytes.Contains(b, []byte("Txn")) {
			w.t.Error("a token of the caller went upstream")
		}
		rw.Header().Set("Content-Type", "application/json")
		switch m.Method {
		case "server/discover":
			fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}}`, m.ID)
			return
		}
		answer(m.Method, string(m.ID), rw)
	}))
	w.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	w.at("desk", srv.URL)
}

const oneTool = `{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"greet","inputSchema":{"type":"object"}}]}}`

func TestServerMessages(t *testing.T) {
	for name, c := range map[string]struct{ call, list string }{
		"another id":        {call: `{"jsonrpc":"2.0","id":999,"result":{"content":[{"type":"text","text":"hello Ann"}]}}`},
		"name twice":        {call: `{"jsonrpc":"2.0","id":%s,"result":{},"result":{"content":[{"type":"text","text":"hello Ann"}]}}`},
		"a request":         {call: `{"jsonrpc":"2.0","id":%s,"method":"elicitation/create"}`},
		"no object":         {call: `{"jsonrpc":"2.0","id":%s,"result":"hello Ann"}`},
		"result name twice": {call: `{"jsonrpc":"2.0","id":%s,"result":{"content":[],"content":[{"type":"text","text":"hello Ann"}]}}`},
		"event of another":  {call: "data: " + `{"jsonrpc":"2.0","id":999,"result":{"content":[{"type":"text","text":"hello Ann"}]}}` + "\n\n"},
		"not JSON":          {call: `hello Ann`},
		"not UTF-8":         {call: `{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"hello Ann` + "\xff" + `"}]}}`},
		"a tool twice":      {call: `{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"hello Ann"}]}}`, list: `{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"greet"},{"name":"greet"}]}}`},
		"many members":      {call: `{"jsonrpc":"2.0","id":%s,"result":{"hello Ann":1` + many(300) + `}}`},
	} {
		w := newWorld(t)
		w.view.Call["desk/greet"] = true
		w.hostile(func(method, id string, rw http.ResponseWriter) {
			text := c.call
			if method == "tools/list" {
				if text = c.list; text == "" {
					text = oneTool
				}
			}
			if strings.HasPrefix(text, "data:") {
				rw.Header().Set("Content-Type", "text/event-stream")
			}
			if strings.Contains(text, "%s") {
				text = fmt.Sprintf(text, id)
			}
			_, _ = io.WriteString(rw, text)
		})
		status, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn)
		if strings.Contains(body, "hello Ann") || !strings.Contains(body, `"error"`) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":1`, i)
	}
	return b.String()
}

func TestServerFloods(t *testing.T) {
	for _, kind := range []string{"one event", "tools", "pages"} {
		w := newWorld(t, func(c *mcp.Config) { c.Timeout = 20 * time.Second })
		w.view.Call["desk/greet"] = true
		pages := 0
		w.hostile(func(method, id string, rw http.ResponseWriter) {
			switch {
			case method == "tools/list" && kind == "tools":
				fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"greet"}`, id)
				for i := range 1200 {
					fmt.Fprintf(rw, `,{"name":"t%d"}`, i)
				}
				fmt.Fprint(rw, `]}}`)
			case method == "tools/list" && kind == "pages":
				if pages++; pages < 150 {
					fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":{"tools":[],"nextCursor":"x"}}`, id)
				} else {
					fmt.Fprintf(rw, oneTool, id)
				}
			case method == "tools/list":
				fmt.Fprintf(rw, oneTool, id)
			case kind == "one event":
				rw.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(rw, ": ")
				for range 20 {
					if _, err := rw.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
						return
					}
				}
				fmt.Fprintf(rw, "\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[]}}\n\n", id)
			default:
				fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":{"content":[]}}`, id)
			}
		})
		if status, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(body, `"error"`) {
			t.Errorf("%s: %d %s", kind, status, body)
		}
	}
	w := newWorld(t, func(c *mcp.Config) { c.Timeout = 20 * time.Second })
	w.view.List["desk"] = true
	r, pw := io.Pipe()
	ended := make(chan bool, 1)
	w.set(func() {
		w.servers["tool/desk"] = &mcp.Server{ID: "p", Pipe: func() (mcp.Pipe, error) { return &flood{r, pw, ended}, nil }}
	})
	go func() {
		_, err := pw.Write(bytes.Repeat([]byte("x"), 17<<20))
		if err == nil {
			_, err = io.WriteString(pw, "\n"+`{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{}}}`+"\n")
		}
		ended <- err != nil
	}()
	if _, body := w.modern("/mcp/desk", "server/discover", "", ""); !strings.Contains(body, `"error"`) {
		t.Error(body)
	}
	if !<-ended {
		t.Error("a line without end was read")
	}
}

type flood struct {
	*io.PipeReader
	w     *io.PipeWriter
	ended chan bool
}

func (f *flood) Write(b []byte) (int, error) { return len(b), nil }
func (f *flood) Close() error                { return errors.Join(f.PipeReader.Close(), f.w.Close()) }

func TestQuota(t *testing.T) {
	now := time.Now()
	w := deskWorld(t, true, func(c *mcp.Config) {
		c.Quota = gateway.NewQuota(gateway.Limits{Rate: 1, Burst: 1, Concurrent: 1})
		c.Now = func() time.Time { return now }
	})
	w.modern("/mcp/desk", "tools/call", "greet", greetAnn)
	if status, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); status != 429 || strings.Contains(body, "hello") {
		t.Errorf("%d %s", status, body)
	}
}

func TestSessionsAreBoundAndBounded(t *testing.T) {
	w := deskWorld(t, false)
	w.Runs["rt2"] = gatewaytest.Run{ID: remit.NewRunID(), Agent: w.ID("/agent/support")}
	sid := w.session("/mcp/desk")
	list := `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`
	if status, body, _ := w.send("/mcp/desk", list, "Mcp-Session-Id", sid); status != 200 || !strings.Contains(body, "greet") {
		t.Errorf("%d %s", status, body)
	}
	for name, c := range map[string]struct{ as, txn, path string }{
		"another agent": {"/agent/other", "other", "/mcp/desk"}, "another run": {"/agent/support", "rt2", "/mcp/desk"}, "another address": {"/agent/support", "rt", "/mcp"},
	} {
		w.set(func() { w.as, w.txn = c.as, c.txn })
		if status, body, _ := w.send(c.path, list, "Mcp-Session-Id", sid); status != 404 {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	w.set(func() { w.as, w.txn = "/agent/support", "rt" })
	for range 63 {
		w.session("/mcp")
	}
	init := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`
	if _, body, head := w.send("/mcp", init); !strings.Contains(body, "too many") || head.Get("Mcp-Session-Id") != "" {
		t.Errorf("%s", body)
	}
	req, _ := http.NewRequest(http.MethodDelete, w.url+"/mcp/desk", nil)
	req.Header.Set("Mcp-Session-Id", sid)
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != http.StatusNoContent {
		t.Errorf("%v %v", res, err)
	}
	_ = res.Body.Close()
	if status, _, _ := w.send("/mcp/desk", list, "Mcp-Session-Id", sid); status != 404 {
		t.Errorf("an ended session answers %d", status)
	}
}

const askDoor = `,"name":"ask","arguments":{"name":"door"}`

func stateOf(t *testing.T, body string) string {
	t.Helper()
	var a struct {
		Result struct {
			State string `json:"requestState"`
		} `json:"result"`
	}
	if err := json.Unmarshal([]byte(body), &a); err != nil || a.Result.State == "" {
		t.Fatalf("%v %s", err, body)
	}
	return a.Result.State
}

func TestStateIsBound(t *testing.T) {
	for _, stateless := range []bool{true, false} {
		w := deskWorld(t, stateless)
		w.Runs["rt2"] = gatewaytest.Run{ID: w.run, Agent: w.ID("/agent/other")}
		_, body := w.modern("/mcp/desk", "tools/call", "ask", askDoor)
		state := stateOf(t, body)
		if strings.Contains(state, "kept") {
			t.Error("the state is not sealed")
		}
		key := map[bool]string{true: "q", false: "input"}[stateless]
		back := func(params, state string) string {
			_, body := w.modern("/mcp/desk", "tools/call", "ask", params+`,"inputResponses":{"`+key+`":{"action":"accept","content":{"it":"42"}}},"requestState":"`+state+`"`)
			return body
		}
		if b := back(`,"name":"ask","arguments":{"name":"gate"}`, state); !strings.Contains(b, "requestState is not of this request") {
			t.Errorf("other arguments: %s", b)
		}
		other := "A"
		if state[0] == 'A' {
			other = "B"
		}
		if b := back(askDoor, other+state[1:]); strings.Contains(b, "accept") {
			t.Errorf("changed state: %s", b)
		}
		w.set(func() { w.as, w.txn, w.answer = "/agent/other", "rt2", allow })
		if b := back(askDoor, state); strings.Contains(b, "accept") {
			t.Errorf("another agent: %s", b)
		}
		w.set(func() { w.as, w.txn, w.answer = "/agent/support", "rt", nil })
		if b := back(askDoor, state); !strings.Contains(b, "accept 42") {
			t.Errorf("the right one: %s", b)
		}
	}
}

func TestSuspendedCallsAreBounded(t *testing.T) {
	w := deskWorld(t, false)
	for i := range 17 {
		_, body := w.modern("/mcp/desk", "tools/call", "ask", askDoor)
		if (i < 16) != strings.Contains(body, "input_required") {
			t.Fatalf("%d: %s", i, body)
		}
	}
}

func TestUpdatesOfSubscribedResources(t *testing.T) {
	w := newWorld(t)
	s := sdk.NewServer(&sdk.Implementation{Name: "kb"}, &sdk.ServerOptions{
		SubscribeHandler:   func(context.Context, *sdk.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *sdk.UnsubscribeRequest) error { return nil }})
	for _, uri := range []string{"kb://one", "kb://two"} {
		s.AddResource(&sdk.Resource{URI: uri, Name: uri}, func(context.Context, *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
			return &sdk.ReadResourceResult{}, nil
		})
	}
	w.servePipe("kb", s)
	w.view.List["kb"] = true
	updates := func() (*sdk.ClientSession, chan string) {
		c := make(chan string, 8)
		return w.client("/mcp/kb", false, &sdk.ClientOptions{ResourceUpdatedHandler: func(_ context.Context, r *sdk.ResourceUpdatedNotificationRequest) { c <- r.Params.URI }}), c
	}
	first, one := updates()
	second, two := updates()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := errors.Join(first.Subscribe(ctx, &sdk.SubscribeParams{URI: "kb://one"}), second.Subscribe(ctx, &sdk.SubscribeParams{URI: "kb://two"})); err != nil {
		t.Fatal(err)
	}
	for ctx.Err() == nil && (len(one) == 0 || len(two) == 0) { // the clients' own streams may open after Subscribe has returned
		_ = s.ResourceUpdated(ctx, &sdk.ResourceUpdatedNotificationParams{URI: "kb://one"})
		_ = s.ResourceUpdated(ctx, &sdk.ResourceUpdatedNotificationParams{URI: "kb://two"})
		time.Sleep(10 * time.Millisecond)
	}
	if a, b := <-one, <-two; a != "kb://one" || b != "kb://two" {
		t.Errorf("%s %s", a, b)
	}
}

// TestOneMessageALine: an answer of the client is one line for the server, whatever line breaks stand between its parts: a line is a
// message, and the one in the middle was decided by nobody.
func TestOneMessageALine(t *testing.T) {
	w := newWorld(t)
	ours, theirs := net.Pipe()
	w.set(func() {
		w.servers["tool/desk"] = &mcp.Server{ID: "p", Pipe: func() (mcp.Pipe, error) { return ours, nil }}
		w.view.Call["desk/ask"] = true
	})
	seen := make(chan string, 16)
	go func() {
		defer close(seen)
		scan := bufio.NewScanner(theirs)
		for scan.Scan() {
			line := scan.Text()
			seen <- line
			var m struct {
				ID     json.RawMessage `json:"id"`
				Method string          `json:"method"`
			}
			_ = json.Unmarshal([]byte(line), &m)
			switch m.Method {
			case "initialize": // the id of its answer is 1, of the list's 2, of the call's 3
				fmt.Fprintf(theirs, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"x","version":"1"}}}`+"\n", m.ID)
			case "tools/list":
				fmt.Fprintf(theirs, `{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"ask","inputSchema":{"type":"object"}}]}}`+"\n", m.ID)
			case "tools/call":
				fmt.Fprint(theirs, `{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{"message":"?"}}`+"\n")
			case "":
				if strings.HasSuffix(line, "}}") || strings.HasPrefix(line, "}") { // the whole answer was read
					fmt.Fprint(theirs, `{"jsonrpc":"2.0","id":3,"result":{"content":[]}}`+"\n")
				}
			}
		}
	}()
	_, body := w.modern("/mcp/desk", "tools/call", "ask", askDoor)
	evil := `{"action":` + "\n" + `{"jsonrpc":"2.0","id":99,"method":"tools/call","params":{"name":"secret","arguments":{}}}` + "\n" + `}`
	w.modern("/mcp/desk", "tools/call", "ask", askDoor+`,"inputResponses":{"input":`+evil+`},"requestState":"`+stateOf(t, body)+`"`)
	_ = theirs.Close()
	for line := range seen {
		if strings.HasPrefix(line, `{"jsonrpc":"2.0","id":99`) {
			t.Errorf("a message that nobody decided: %s", line)
		}
	}
}

// TestOneMessageAnEvent: the same towards the client.
func TestOneMessageAnEvent(t *testing.T) {
	w := newWorld(t)
	w.view.Call["desk/greet"] = true
	w.hostile(func(method, id string, rw http.ResponseWriter) {
		if method == "tools/list" {
			fmt.Fprintf(rw, oneTool, id)
			return
		}
		rw.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(rw, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\ndata: \"x\":\ndata: 1}}\n\n")
		fmt.Fprintf(rw, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[]}}\n\n", id)
	})
	_, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn)
	for line := range strings.SplitSeq(body, "\n") {
		if line != "" && !strings.HasPrefix(line, "data: ") && !strings.HasPrefix(line, "event: ") {
			t.Errorf("%q breaks an event", line)
		}
	}
	if !strings.Contains(body, `"x":1`) {
		t.Error(body)
	}
}

// TestFirstListIsRemembered: where nobody reviewed a tool, what is read first counts; and nothing of it is used before it is on record.
func TestFirstListIsRemembered(t *testing.T) {
	w := deskWorld(t, true)
	w.set(func() { w.remembers, w.forgets = true, errors.New("the disk is full") })
	if _, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); strings.Contains(body, "hello Ann") || !strings.Contains(body, "could not be put on record") {
		t.Errorf("a tool that could not be remembered is called: %s", body)
	}
	if _, body := w.modern("/mcp/desk", "tools/list", "", ""); strings.Contains(body, "says hello") {
		t.Errorf("a tool that could not be remembered is shown: %s", body)
	}
	w.set(func() { w.forgets = nil })
	if _, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(body, "hello Ann") {
		t.Error(body)
	}
	w.set(func() { w.remembers = false })
	w.set(func() { // the server has changed meanwhile
		p := w.pins["tool/desk"].Tools["greet"]
		p.Digest = remit.DigestOf([]byte("another"))
		w.pins["tool/desk"].Tools["greet"] = p
	})
	if _, body := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(body, "target_unfit (pins)") {
		t.Errorf("a tool that changed is called: %s", body)
	}
}
