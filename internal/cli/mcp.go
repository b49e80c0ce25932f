// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
)

const (
	maxMCPLine    = 16 << 20 // of either side
	mcpAtOnce     = 32       // messages of the client under way
	statelessEra  = "2026-07-28"
	metaPrefix    = "io.modelcontextprotocol/"
	metaVersion   = metaPrefix + "protocolVersion"
	headerSession = "Mcp-Session-Id"
)

func (a *app) mcpCommand() *cobra.Command {
	var url, token, tool string
	cmd := &cobra.Command{
		Use:     "mcp",
		Short:   "Bridge an MCP client's standard input and output to the gateway, with this process's identity",
		Long:    "Speak MCP on standard input and output and pass each message to the gateway with the SVID of this process and its run\ntoken, so that any client that can start a server works. Needs SPIFFE_ENDPOINT_SOCKET, and REMIT_URL and\nREMIT_RUN_TOKEN_FILE or the flags; remit exec sets all three.",
		Example: "  remit client setup claude",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.bridgeMCP(c.Context(), url, token, tool)
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "the server's https address (default $"+envURL+")")
	cmd.Flags().StringVar(&token, "run-token-file", "", "file with the run token (default $"+envRunToken+")")
	cmd.Flags().StringVar(&tool, "tool", "", "only this tool's server, under its own names")
	return cmd
}

// bridge passes messages between a client's pipes and the gateway. What it passes on it does not judge: the gateway does.
type bridge struct {
	url    string
	token  ask
	client *http.Client
	idle   func() // closes connections that show an older certificate

	out   io.Writer
	write sync.Mutex // one line at a time

	mu      sync.Mutex // guards the rest
	session string
	version string
	calls   map[string]context.CancelFunc
	tools   map[string]json.RawMessage // as tools/list last described them to a stateless client
	hearing context.CancelFunc         // ends the stream of what belongs to no request; nil: none is open
}

func (a *app) bridgeMCP(ctx context.Context, url, token, tool string) error {
	if url == "" {
		url = os.Getenv(envURL)
	}
	if url == "" {
		return badUse("the server's address is not known").hint("set %s, or run this under remit exec", envURL)
	}
	q := ask{tokenFile: token}
	if _, err := q.runToken(); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(wait, workloadapi.WithClientOptions(workloadapi.WithLogger(quietLog{})))
	if err != nil {
		return &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no identity from the Workload API", Cause: err, Hint: noIdentity()}
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("read this process's identity: %w", err)
	}
	server, err := spiffeid.FromPath(svid.ID.TrustDomain(), "/remit/server")
	if err != nil {
		return fmt.Errorf("name the server: %w", err)
	}
	cfg := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(server))
	cfg.MinVersion = tls.VersionTLS13
	transport := &http.Transport{TLSClientConfig: cfg, MaxIdleConnsPerHost: mcpAtOnce, IdleConnTimeout: time.Minute}
	path := "/mcp"
	if tool != "" {
		path += "/" + tool
	}
	b := &bridge{url: strings.TrimSuffix(url, "/") + path, token: q, client: &http.Client{Transport: transport}, idle: transport.CloseIdleConnections,
		out: a.out, calls: map[string]context.CancelFunc{}}
	return b.run(ctx, a.in)
}

// run passes on lines until the input ends or ctx does; then what is under way is given up.
func (b *bridge) run(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	defer b.deafen()
	lines := make(chan []byte)
	ended := make(chan error, 1)
	go func() { // a read of standard input cannot be ended; it goes with the process
		ended <- b.read(ctx, in, lines)
	}()
	slots := make(chan struct{}, mcpAtOnce)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			b.deafen()
			all.Wait() // the last answers still go out
			b.end()
			return err
		case line := <-lines:
			m := clientMessage(line)
			if m.Method == "notifications/cancelled" {
				b.cancel(m)
			}
			if m.Method == "initialize" || m.Method == "notifications/initialized" { // what follows needs the session
				b.pass(ctx, line, m, &all)
				continue
			}
			slots <- struct{}{}
			all.Go(func() { b.pass(ctx, line, m, &all); <-slots })
		}
	}
}

// read hands lines on until the input ends. One that is too long is skipped and refused, and costs no memory.
func (b *bridge) read(ctx context.Context, in io.Reader, lines chan<- []byte) error {
	src := bufio.NewReader(in)
	for {
		line, err := nextLine(src, maxMCPLine)
		if errors.Is(err, errLongLine) {
			b.fail(mcpMessage{ID: json.RawMessage("null"), Method: "?"}, err.Error())
			continue
		}
		if len(bytes.TrimSpace(line)) > 0 {
			select {
			case lines <- line:
			case <-ctx.Done():
				return nil
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
	}
}

var errLongLine = fmt.Errorf("a message of more than %d bytes", maxMCPLine)

// nextLine reads a line of at most so many bytes; a longer one is read to its end and dropped.
func nextLine(src *bufio.Reader, most int) ([]byte, error) {
	var out []byte
	long := false
	for {
		part, err := src.ReadSlice('\n')
		if long = long || len(out)+len(part) > most; long {
			out = nil
		} else {
			out = append(out, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case long && err == nil:
			return nil, errLongLine
		default:
			return out, err
		}
	}
}

// mcpMessage is as much of a message as the bridge needs.
type mcpMessage struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Name      string                     `json:"name"`
		URI       string                     `json:"uri"`
		Arguments json.RawMessage            `json:"arguments"`
		Request   json.RawMessage            `json:"requestId"`
		Meta      map[string]json.RawMessage `json:"_meta"`
	} `json:"params"`
}

func clientMessage(line []byte) mcpMessage {
	var m mcpMessage
	_ = json.Unmarshal(line, &m) // what cannot be read the gateway refuses, with its own words
	return m
}

func (b *bridge) cancel(m mcpMessage) {
	b.mu.Lock()
	stop := b.calls[string(m.Params.Request)]
	stateless := b.session == ""
	b.mu.Unlock()
	if stop != nil && stateless {
		stop()
	}
}

// pass sends one message and writes what comes back.
func (b *bridge) pass(ctx context.Context, line []byte, m mcpMessage, all *sync.WaitGroup) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if id := string(m.ID); id != "" && m.Method != "" {
		b.mu.Lock()
		b.calls[id] = cancel
		b.mu.Unlock()
		defer func() { b.mu.Lock(); delete(b.calls, id); b.mu.Unlock() }()
	}
	res, err := b.send(ctx, line, m)
	if err == nil && res.StatusCode == http.StatusUnauthorized { // the certificate was renewed, but not the connection's
		_ = res.Body.Close()
		b.idle()
		res, err = b.send(ctx, line, m)
	}
	if err == nil {
		res, err = b.again(ctx, line, m, res)
	}
	if err != nil {
		b.fail(m, err.Error())
		return
	}
	defer res.Body.Close()
	b.settle(res, m)
	if err := b.answers(res, m); err != nil {
		b.fail(m, err.Error())
	}
	if m.Method == "notifications/initialized" && res.StatusCode < 300 {
		b.hear(ctx, all)
	}
}

func (b *bridge) send(ctx context.Context, line []byte, m mcpMessage) (*http.Response, error) {
	req, err := b.request(ctx, http.MethodPost, bytes.NewReader(line))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if m.stateless() {
		req.Header.Del(headerSession)
		req.Header.Set("Mcp-Protocol-Version", statelessEra)
		req.Header.Set("Mcp-Method", m.Method)
		if name := m.Params.Name + m.Params.URI; name != "" {
			req.Header.Set("Mcp-Name", headerText(name))
		}
		for name, value := range b.paramHeaders(m) {
			req.Header.Set(name, value)
		}
	}
	res, err := b.client.Do(req)
	if err != nil {
		return nil, errors.New("the gateway does not answer: is remit serve running, and is this process the agent's?")
	}
	return res, nil
}

// headerText encodes what a header cannot carry as it is.
func headerText(s string) string {
	plain := s == strings.TrimSpace(s) && !strings.HasPrefix(s, "=?base64?")
	for i := range len(s) {
		plain = plain && s[i] >= 0x20 && s[i] <= 0x7e
	}
	if plain {
		return s
	}
	return "=?base64?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
}

func (b *bridge) request(ctx context.Context, method string, body io.Reader) (*http.Request, error) {
	token, err := b.token.runToken()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, b.url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Txn-Token", token)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != "" {
		req.Header.Set(headerSession, b.session)
		req.Header.Set("Mcp-Protocol-Version", b.version)
	}
	return req, nil
}

// settle keeps the session that initialize began.
func (b *bridge) settle(res *http.Response, m mcpMessage) {
	if id := res.Header.Get(headerSession); m.Method == "initialize" && id != "" {
		b.mu.Lock()
		b.session, b.version = id, ""
		b.mu.Unlock()
	}
}

// answers writes what a response holds, a message a line.
func (b *bridge) answers(res *http.Response, m mcpMessage) error {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	switch {
	case res.StatusCode == http.StatusAccepted || res.StatusCode == http.StatusNoContent:
		return nil
	case kind == "text/event-stream":
		return b.events(res.Body, m)
	case kind == "application/json":
		body, err := io.ReadAll(io.LimitReader(res.Body, maxMCPLine+1))
		switch {
		case err != nil:
			return errBrokeOff
		case len(body) > maxMCPLine:
			return errLongLine
		}
		if m.Method == "initialize" {
			var r struct {
				Result struct {
					Version string `json:"protocolVersion"`
				} `json:"result"`
			}
			_ = json.Unmarshal(body, &r)
			b.mu.Lock()
			b.version = r.Result.Version
			b.mu.Unlock()
		}
		return b.answer(body, m)
	}
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
	return fmt.Errorf("the gateway answered %d: %s", res.StatusCode, strings.TrimSpace(string(text)))
}

var errBrokeOff = errors.New("the gateway's answer broke off")

// answer writes the response to m. An error that names no request is one about m.
func (b *bridge) answer(body []byte, m mcpMessage) error {
	var r struct {
		ID    json.RawMessage `json:"id"`
		Error *struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &r) != nil {
		return errBrokeOff
	}
	if r.Error != nil && (len(r.ID) == 0 || string(r.ID) == "null") {
		return errors.New(r.Error.Message)
	}
	b.learn(body, m)
	b.line(body)
	return nil
}

// events writes the messages of a stream. One that ends without the response to m broke off; the session's own stream has none.
func (b *bridge) events(body io.Reader, m mcpMessage) error {
	for src := bufio.NewReader(body); ; {
		line, err := nextLine(src, maxMCPLine)
		if errors.Is(err, errLongLine) {
			return err
		}
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok { // the gateway writes one line an event
			r := clientMessage(data)
			if r.Method == "" && len(m.ID) > 0 && bytes.Equal(r.ID, m.ID) {
				return b.answer(data, m)
			}
			b.line(data)
		}
		if err != nil && len(m.ID) > 0 {
			return errBrokeOff
		} else if err != nil {
			return nil //nolint:nilerr // it is opened again
		}
	}
}

// line writes one message; JSON without line breaks, which may stand between its parts.
func (b *bridge) line(data []byte) {
	var one bytes.Buffer
	if json.Compact(&one, data) != nil || one.Len() == 0 {
		return
	}
	one.WriteByte('\n')
	b.write.Lock()
	defer b.write.Unlock()
	_, _ = b.out.Write(one.Bytes())
}

// fail answers a request that got no answer.
func (b *bridge) fail(m mcpMessage, text string) {
	if len(m.ID) == 0 || m.Method == "" {
		return
	}
	msg, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": m.ID, "error": map[string]any{"code": -32603, "message": text}})
	b.line(msg)
}

// hear opens the stream of what belongs to no request, once.
func (b *bridge) hear(ctx context.Context, all *sync.WaitGroup) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // longer than the message that opened it
	b.mu.Lock()
	again := b.hearing != nil || b.session == ""
	if !again {
		b.hearing = cancel
	}
	b.mu.Unlock()
	if again {
		cancel()
		return
	}
	all.Go(func() {
		defer cancel()
		for ctx.Err() == nil {
			req, err := b.request(ctx, http.MethodGet, nil)
			if err != nil {
				return
			}
			req.Header.Set("Accept", "text/event-stream")
			res, err := b.client.Do(req)
			if err != nil || res.StatusCode != http.StatusOK {
				if err == nil {
					_ = res.Body.Close()
				}
				return
			}
			_ = b.events(res.Body, mcpMessage{})
			_ = res.Body.Close()
			select { // it ends with the certificate that it was opened with
			case <-ctx.Done():
			case <-time.After(time.Second):
				b.idle()
			}
		}
	})
}

func (b *bridge) deafen() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hearing != nil {
		b.hearing()
	}
}

// end ends the session.
func (b *bridge) end() {
	b.mu.Lock()
	session := b.session
	b.mu.Unlock()
	if session == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if req, err := b.request(ctx, http.MethodDelete, nil); err == nil {
		if res, err := b.client.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}
}
