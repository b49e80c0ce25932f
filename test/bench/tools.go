// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"remit/internal/tool"
)

// boxedTool is an MCP server over standard streams in the standard library alone. echo is the least; ask sends n requests over one kept
// connection, through the proxy where there is one, and says the median in microseconds.
const boxedTool = `import http.client, json, os, statistics, sys, time, urllib.parse
def tool(name, **properties):
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}
def ask(url, n):
    at = urllib.parse.urlsplit(url)
    proxy = urllib.parse.urlsplit(os.environ.get("HTTP_PROXY", ""))
    c = http.client.HTTPConnection(proxy.hostname or at.hostname, proxy.port or at.port, timeout=30)
    took = []
    for _ in range(n):
        begun = time.perf_counter()
        c.request("GET", url if proxy.hostname else at.path, headers={"Host": at.netloc})
        r = c.getresponse()
        if r.status != 200 or r.read() != b"done":
            raise Exception(r.status)
        took.append(time.perf_counter() - begun)
        time.sleep(0.002)
    return str(int(1e6 * statistics.median(took)))
def answer(method, params):
    if method == "initialize":
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "boxed", "version": "1"}}
    if method == "tools/list":
        return {"tools": [tool("echo", app={"type": "string"}), tool("ask", url={"type": "string"}, n={"type": "integer"})]}
    if method == "tools/call":
        try:
            text, failed = ask(**params["arguments"]) if params["name"] == "ask" else "done", False
        except Exception as e:
            text, failed = "failed: " + repr(e), True
        return {"content": [{"type": "text", "text": text}], "isError": failed}
    return {}
for line in sys.stdin:
    m = json.loads(line)
    if "id" in m:
        print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": answer(m["method"], m.get("params", {}))}), flush=True)
`

const (
	boxedFiles = `kind: Agent
name: desk
owner: bench
ttl: 1h
attest: [{unix: {uid: %d}}]
---
kind: Target
name: up
type: http
url: %q
private: true
`
	boxedServer = "---\nkind: Tool\nname: %[1]s\nowner: bench\nserver: {command: [/usr/bin/python3, /tool/tool.py], files: {from: %[2]q, digest: %[3]q}, sandbox: %[1]s, limits: {wall: 10m}}\n"
	boxedFlow   = `kind: Workflow
name: boxed
start: {by: [operator/bench], expires: 2h}
stages:
- name: work
  end: {by: [operator/bench]}
  may:
`
	boxedMay = `  - {name: echo-%[1]s, who: agent/desk, action: mcp.call, target: %[1]s/echo, sandbox: process, where: {app: foo}}
  - {name: ask-%[1]s, who: agent/desk, action: mcp.call, target: %[1]s/ask, sandbox: process, where: {url: {any: true}, n: {any: true}}}
  - {name: out-%[1]s, who: tool/%[1]s, under: ask-%[1]s, action: http.get, target: up, sandbox: process, where: {path: /x}}
`
)

// boxed is a server with one tool for each tier, and what is needed to call them.
type boxed struct {
	*installation
	up  string
	tls *tls.Config
}

// tools measures tools that Remit starts in sandboxes, through the gateway: a call, the first call of a run, and their way out. Beside it
// the same program as a child of this process, without a sandbox.
func (b *bench) tools(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("sandboxes are measured as root")
	}
	x, err := b.boxed(ctx)
	if err != nil {
		return err
	}
	direct, asked, err := x.natively(ctx, 4*b.rounds)
	if err != nil {
		return err
	}
	for _, tier := range []string{"kernel", "process"} {
		if err := b.firstCalls(ctx, x, tier); err != nil {
			return err
		}
		if err := b.callsAndWayOut(ctx, x, tier, direct, asked); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) boxed(ctx context.Context) (*boxed, error) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") }))
	b.stops = append(b.stops, up.Close)
	folder := b.path("boxed-tool")
	err := errors.Join(os.Mkdir(folder, 0o755), os.WriteFile(filepath.Join(folder, "tool.py"), []byte(boxedTool), 0o644)) //nolint:gosec // no secrets
	if err != nil {
		return nil, err
	}
	digest, err := tool.Digest(folder)
	if err != nil {
		return nil, err
	}
	x := &boxed{up: up.URL}
	files, flow := fmt.Sprintf(boxedFiles, os.Getuid(), up.URL), boxedFlow
	for _, tier := range []string{"kernel", "process"} {
		files, flow = files+fmt.Sprintf(boxedServer, tier, folder, digest), flow+fmt.Sprintf(boxedMay, tier)
	}
	if x.installation, err = b.install(ctx, "boxed", map[string]string{"tools.yaml": files, "workflow.yaml": flow}); err != nil {
		return nil, err
	}
	if err := x.become(ctx); err != nil {
		return nil, err
	}
	x.tls, err = x.installation.tls("agent/desk")
	return x, err
}

// natively runs the program without a sandbox, and returns the medians of a call and of a request of its own, in ms.
func (x *boxed) natively(ctx context.Context, rounds int) (call, asked float64, err error) {
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", boxedTool)
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, in.Close(), cmd.Wait()) }()
	lines := bufio.NewReader(out)
	ask := func(line string) (string, error) {
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			return "", err
		}
		return lines.ReadString('\n')
	}
	var calls []float64
	for range 50 * rounds {
		begun := time.Now()
		if _, err := ask(toolCall("echo", `{"app":"foo"}`)); err != nil {
			return 0, 0, err
		}
		calls = append(calls, ms(time.Since(begun)))
	}
	said, err := ask(toolCall("ask", fmt.Sprintf(`{"url":"%s/x","n":500}`, x.up)))
	if err != nil {
		return 0, 0, err
	}
	asked, err = saidMilliseconds([]byte(said))
	return median(calls), asked, err
}

// firstCalls measures the first call of a run: the first waits for a sandbox from nothing, the others find one prepared.
func (b *bench) firstCalls(ctx context.Context, x *boxed, tier string) error {
	var cold float64
	var prepared []float64
	for i := range 2*b.rounds + 1 {
		c, done, err := x.begin(ctx, tier)
		if err != nil {
			return err
		}
		begun := time.Now()
		err = c.ask(c.requests[0])
		took := ms(time.Since(begun))
		if err := errors.Join(err, done()); err != nil {
			return err
		}
		if i == 0 {
			cold = took
		} else {
			prepared = append(prepared, took)
		}
		time.Sleep(time.Second) // the next one is prepared behind the answer
	}
	b.table.add(row{what: "first call of a run, tool in tier " + tier + ", prepared", ours: figure(median(prepared)) + " ms",
		theirs: "from nothing, once: " + figure(cold) + " ms"})
	return nil
}

// begin starts a run and connects as its agent, which sends calls of echo.
func (x *boxed) begin(ctx context.Context, tier string) (*conn, func() error, error) {
	run, token, err := x.run(ctx, "boxed", "agent/desk", nil)
	if err != nil {
		return nil, nil, err
	}
	s := &side{name: tier, pid: x.pid, address: x.address, want: []byte(`"done"`), tls: func(int) *tls.Config { return x.tls },
		requests: func(int) [][]byte {
			return [][]byte{toolPost(x.address, "/mcp/"+tier, token, "echo", `{"app":"foo"}`),
				toolPost(x.address, "/mcp/"+tier, token, "ask", fmt.Sprintf(`{"url":"%s/x","n":500}`, x.up))}
		}}
	c, err := s.dial(0)
	if err != nil {
		return nil, nil, err
	}
	return c, func() error {
		var ended any
		return errors.Join(c.Close(), x.admin.Post(ctx, "/v1/runs/"+string(run.ID)+"/finish", struct{}{}, &ended))
	}, nil
}

func (b *bench) callsAndWayOut(ctx context.Context, x *boxed, tier string, direct, asked float64) error {
	c, done, err := x.begin(ctx, tier)
	if err != nil {
		return err
	}
	var calls []float64
	for i := range 50 * 4 * b.rounds {
		begun := time.Now()
		if err := c.ask(c.requests[0]); err != nil {
			return err
		}
		if i > 0 { // the first waits for the sandbox
			calls = append(calls, ms(time.Since(begun)))
		}
	}
	b.table.add(row{what: "tools/call, tool in tier " + tier + ", decided and on record", ours: "p50 " + figure(median(calls)) + " ms",
		theirs: "direct, no sandbox: p50 " + figure(direct) + " ms", got: median(calls) - direct, want: 1.5, unit: "ms added at p50"})
	ok, body, err := c.exchange(c.requests[1])
	if err != nil || !ok {
		return fmt.Errorf("a tool's requests: %w %.300s", err, body)
	}
	through, err := saidMilliseconds(body)
	if err != nil {
		return err
	}
	b.table.add(row{what: "request of a tool in tier " + tier + ", kept connection, decided and on record", ours: "p50 " + figure(through) + " ms",
		theirs: "direct, no sandbox: p50 " + figure(asked) + " ms", got: through - asked, want: 1, unit: "ms added at p50"})
	return done()
}

// saidMilliseconds reads what ask said.
func saidMilliseconds(body []byte) (float64, error) {
	var m struct {
		Result struct {
			Content []struct{ Text string }
		}
	}
	var us float64
	if err := json.Unmarshal(body, &m); err != nil || len(m.Result.Content) != 1 {
		return 0, fmt.Errorf("a tool said %.300s", body)
	}
	if _, err := fmt.Sscanf(m.Result.Content[0].Text, "%g", &us); err != nil {
		return 0, fmt.Errorf("a tool said %.300s", body)
	}
	return us / 1e3, nil
}

func toolCall(name, args string) string {
	return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + name + `","arguments":` + args +
		`,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
}
