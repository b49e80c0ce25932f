// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// mcpClient is where a client keeps its servers, below the home folder or, with project, below the present one.
type mcpClient struct {
	file    string
	project bool
	key     string // of the servers' object
	kind    string // the server's "type", where the client wants one
}

var mcpClients = map[string]mcpClient{
	"claude":         {file: ".mcp.json", project: true, key: "mcpServers", kind: "stdio"},
	"claude-desktop": {file: ".config/Claude/claude_desktop_config.json", key: "mcpServers"},
	"cursor":         {file: ".cursor/mcp.json", key: "mcpServers"},
	"vscode":         {file: ".vscode/mcp.json", project: true, key: "servers", kind: "stdio"},
	"windsurf":       {file: ".codeium/windsurf/mcp_config.json", key: "mcpServers"},
	"gemini":         {file: ".gemini/settings.json", key: "mcpServers"},
}

func (a *app) clientCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "client", Short: "Set up MCP clients"}
	var write bool
	var name, file, tool string
	var env []string
	setup := &cobra.Command{
		Use:     "setup CLIENT",
		Short:   "Write the line that lets an MCP client use the gateway",
		Long:    "Add remit mcp to the servers of an MCP client: " + strings.Join(clientNames(), ", ") + ".\nWithout --write the whole file is printed as it would be. Other keys stay; the old file is kept beside it.",
		Example: "  remit client setup cursor --write",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, ok := mcpClients[args[0]]
			if !ok {
				return badUse("client %q is not known", args[0]).hint("one of %s; or start remit mcp as a server by hand", strings.Join(clientNames(), ", "))
			}
			return a.setupClient(c, setupOptions{name, file, tool, env, write})
		},
	}
	f := setup.Flags()
	f.BoolVar(&write, "write", false, "write the file")
	f.StringVar(&name, "name", "remit", "the server's name in the client")
	f.StringVar(&file, "file", "", "another file than the client's usual one")
	f.StringVar(&tool, "tool", "", "only this tool's server, under its own names")
	f.StringArrayVar(&env, "env", nil, "NAME=VALUE for the server's environment: SPIFFE_ENDPOINT_SOCKET, "+envURL+", "+envRunToken+"; never a secret")
	cmd.AddCommand(setup)
	return cmd
}

func clientNames() []string {
	var out []string
	for name := range mcpClients {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

type setupOptions struct {
	name, file, tool string
	env              []string
	write            bool
}

func (a *app) setupClient(c mcpClient, o setupOptions) error {
	path := o.file
	if path == "" {
		path = c.file
		if !c.project {
			home, err := os.UserHomeDir()
			if err != nil {
				return fmt.Errorf("find the home folder: %w", err)
			}
			path = filepath.Join(home, c.file)
		}
	}
	entry, err := serverEntry(c, o)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return badUse("%v", err)
	}
	next, err := merged(old, c.key, o.name, entry)
	if err != nil {
		return badUse("%s: %v", path, err).hint("put it right, or name another --file; nothing was changed")
	}
	if !o.write {
		fmt.Fprintf(a.out, "%s", next)
		a.note("would be %s; --write writes it", path)
		return nil
	}
	if err := replaceFile(path, old, next); err != nil {
		return err
	}
	a.note("wrote %s", path)
	return nil
}

func serverEntry(c mcpClient, o setupOptions) (json.RawMessage, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this executable: %w", err)
	}
	entry := map[string]any{"command": self, "args": []string{"mcp"}}
	if o.tool != "" {
		entry["args"] = []string{"mcp", "--tool", o.tool}
	}
	if c.kind != "" {
		entry["type"] = c.kind
	}
	env := map[string]string{}
	for _, e := range o.env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, badUse("--env %q is not NAME=VALUE", e)
		}
		env[name] = value
	}
	if len(env) > 0 {
		entry["env"] = env
	}
	return json.Marshal(entry)
}

// merged adds the entry and leaves every other member as it is, in its place.
func merged(old []byte, key, name string, entry json.RawMessage) ([]byte, error) {
	if len(bytes.TrimSpace(old)) == 0 {
		old = []byte("{}")
	}
	all, err := members(old)
	if err != nil {
		return nil, err
	}
	servers := []jsonMember{}
	if raw := find(all, key); raw != nil {
		if servers, err = members(raw); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	all = put(all, key, join(put(servers, name, entry)))
	var out bytes.Buffer
	if err := json.Indent(&out, join(all), "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

type jsonMember struct {
	name string
	raw  json.RawMessage
}

func members(raw []byte) ([]jsonMember, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("it is no JSON object (comments are not JSON)")
	}
	var out []jsonMember
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, errors.New("it is not JSON (comments are not)")
		}
		m := jsonMember{}
		m.name, _ = tok.(string)
		if err := dec.Decode(&m.raw); err != nil {
			return nil, errors.New("it is not JSON (comments are not)")
		}
		out = append(out, m)
	}
	if _, err := dec.Token(); err != nil || dec.More() {
		return nil, errors.New("it is not JSON (comments are not)")
	}
	return out, nil
}

func find(all []jsonMember, name string) json.RawMessage {
	for _, m := range all {
		if m.name == name {
			return m.raw
		}
	}
	return nil
}

func put(all []jsonMember, name string, raw json.RawMessage) []jsonMember {
	for i := range all {
		if all[i].name == name {
			all[i].raw = raw
			return all
		}
	}
	return append(all, jsonMember{name, raw})
}

func join(all []jsonMember) json.RawMessage {
	b := []byte("{")
	for i, m := range all {
		if i > 0 {
			b = append(b, ',')
		}
		name, _ := json.Marshal(m.name)
		b = append(append(append(b, name...), ':'), m.raw...)
	}
	return append(b, '}')
}

// replaceFile keeps the old file and puts the new one in its place at once.
func replaceFile(path string, old, next []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return badUse("%v", err)
	}
	mode := os.FileMode(0o600)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
	}
	if old != nil {
		if err := os.WriteFile(path+".before-remit", old, mode); err != nil {
			return badUse("keep the old file: %v", err)
		}
	}
	if err := os.WriteFile(path+".new", next, mode); err != nil {
		return badUse("%v", err)
	}
	return os.Rename(path+".new", path)
}
