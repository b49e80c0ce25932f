// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
)

const mcpWorkflow = "kind: Workflow\nname: tools\nparameters:\n  app: {type: name}\nstart: {by: [operator/bench], expires: 2h}\nstages:\n- name: work\n  end: {by: [operator/bench]}\n  may:\n"

// trivial is the least that an MCP server does: the calls are of the stateless era, and no library costs time on either side.
func trivial() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(b, &m) != nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		result := `{"resultType":"complete","content":[{"type":"text","text":"done"}]}`
		switch m.Method {
		case "server/discover":
			result = `{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"resultType":"complete"}`
		case "tools/list":
			result = `{"resultType":"complete","tools":[{"name":"echo","inputSchema":{"type":"object","properties":{"app":{"type":"string"}}}}]}`
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
	})
}

// mcp compares a tools/call through the gateway, decided and durable in the ledger, with the same call to the server itself.
func (b *bench) mcp(ctx context.Context) error {
	srv := httptest.NewTLSServer(trivial())
	b.stops = append(b.stops, srv.Close)
	ca := b.path("tool.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		return err
	}
	var files, may strings.Builder
	fmt.Fprintf(&files, "kind: Tool\nname: desk\nserver: {url: %q, ca: %s}\n", srv.URL, ca)
	for i := range agents {
		fmt.Fprintf(&files, "---\nkind: Agent\nname: %s\nowner: bench\nttl: 1h\nattest: [{unix: {uid: %d}}]\n", strings.TrimPrefix(agentName(i), "agent/"), os.Getuid())
		fmt.Fprintf(&may, "  - {name: call-%d, who: %s, action: mcp.call, target: desk/echo, sandbox: remote, where: {app: $app}}\n", i, agentName(i))
	}
	in, err := b.install(ctx, "mcp", map[string]string{"tools.yaml": files.String(), "workflow.yaml": mcpWorkflow + may.String()})
	if err != nil {
		return err
	}
	if err := in.become(ctx); err != nil {
		return err
	}
	configs, ours := make([]*tls.Config, agents), make([][]byte, agents)
	for i := range agents {
		_, token, err := in.run(ctx, "tools", agentName(i), map[string]string{"app": "foo"})
		if err != nil {
			return err
		}
		if configs[i], err = in.tls(agentName(i)); err != nil {
			return err
		}
		ours[i] = toolPost(in.address, "/mcp/desk", token, "echo", `{"app":"foo"}`)
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	address := strings.TrimPrefix(srv.URL, "https://")
	gateway := &side{name: "gateway", pid: in.pid, address: in.address, want: []byte(`"done"`), settle: func() error { return in.settle(ctx) },
		tls: func(i int) *tls.Config { return configs[i%agents] }, requests: func(i int) [][]byte { return [][]byte{ours[i%agents]} }}
	direct := &side{name: "direct", pid: os.Getpid(), address: address, want: []byte(`"done"`),
		tls: func(int) *tls.Config {
			return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ServerName: "127.0.0.1"}
		},
		requests: func(int) [][]byte { return [][]byte{toolPost(address, "/", "", "echo", `{"app":"foo"}`)} }}
	return b.compareMCP(ctx, gateway, direct)
}

func (b *bench) compareMCP(ctx context.Context, gateway, direct *side) error {
	for _, n := range []int{1, 16, 64} {
		var got [2]results
		for range b.rounds {
			for i, s := range []*side{gateway, direct} {
				sample, err := s.measure(n, b.round)
				if err = errors.Join(err, ctx.Err()); err != nil {
					return err
				}
				got[i].add(sample)
			}
		}
		what := fmt.Sprintf("tools/call, decided and on record, %d connections", n)
		r := row{what: what, ours: got[0].String(), theirs: "direct: " + got[1].String()}
		switch n {
		case 1:
			r.got, r.want, r.unit = median(got[0].p50)-median(got[1].p50), 1.5, "ms added at p50"
		case 64:
			r.got, r.want, r.least, r.unit = median(got[0].rate), 1500, true, "calls/s"
		}
		b.table.add(r)
	}
	return nil
}

// toolPost is a call of a tool in the stateless era.
func toolPost(host, path, token, name, args string) []byte {
	head := "Mcp-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: " + name + "\r\nAccept: application/json, text/event-stream\r\n"
	if token != "" {
		head += "Txn-Token: " + token + "\r\n"
	}
	body := toolCall(name, args)
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", path, host, head, len(body), body)
}
