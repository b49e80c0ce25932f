// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"remit"
)

// Defaults and bounds of a tool's sandbox.
const (
	defaultMemory, maxMemory       = 256 << 20, 64 << 30
	defaultOutput, maxOutput       = 16 << 20, 1 << 30
	defaultCPU, maxCPU             = 100, 6400
	defaultProcesses, maxProcesses = 64, 4096
	defaultWall, maxWall           = 5 * time.Minute, 24 * time.Hour
)

// pinsSuffix ends the name of a file with reviewed tool descriptions.
const pinsSuffix = ".pins.json"

type toolFile struct {
	agentFile `yaml:",inline"`
	ownOfTool `yaml:",inline"`
}

type ownOfTool struct {
	Server *serverOfTool `yaml:"server" doc:"Its MCP server. Left out: Remit knows the identity only, and where it runs counts as remote."`
	Pins   word          `yaml:"pins" is:"pins" doc:"The file of its reviewed descriptions and schemas, in the configuration directory. A tool that differs is held until it is reviewed. Left out: what is read first is held to. Only with server."`
}

type serverOfTool struct {
	_           struct{}        `one:"command,url"`
	Command     []word          `yaml:"command" is:"argument" doc:"An MCP server over stdio that Remit starts in a sandbox: the program's path there, and its arguments."`
	Files       *toolFiles      `yaml:"files" doc:"The tool's own files, which stand read-only at /tool."`
	Mounts      []mountFile     `yaml:"mounts" doc:"What it sees of the host beside that and the system's programs."`
	Environment map[string]word `yaml:"environment" is:"argument" doc:"Its environment. No secret: what it needs is injected by the egress proxy."`
	Limits      *toolLimits     `yaml:"limits" doc:"The bounds of one sandbox."`
	Sandbox     word            `yaml:"sandbox" is:"boxtier" doc:"In which sandbox it runs: process, kernel or vm. Left out: kernel."`
	Checkpoint  bool            `yaml:"checkpoint" doc:"Whether its runs go on from an image that is taken once it has started and answers: for a tool whose start takes seconds. All runs then share what it drew at random until then. Only in tier kernel, and without mounts that it may write. Left out: false."`
	URL         word            `yaml:"url" is:"url" doc:"A remote MCP server (streamable HTTP). Its tier is remote, below process."`
	CA          word            `yaml:"ca" is:"path" doc:"A PEM file with the roots that its certificate must lead to. Left out: the host's. Only with url."`
}

// boxFile is the sandbox of a launched agent; serverOfTool has the same keys for a tool.
type boxFile struct {
	Tier        word            `yaml:"tier" is:"boxtier" doc:"process, kernel or vm. Left out: kernel."`
	Files       *toolFiles      `yaml:"files" doc:"Files of its own, which stand read-only at /tool."`
	Mounts      []mountFile     `yaml:"mounts" doc:"What it sees of the host beside that, the launched program and the system's programs."`
	Environment map[string]word `yaml:"environment" is:"argument" doc:"Its environment. No secret."`
	Limits      *toolLimits     `yaml:"limits" doc:"The bounds of the sandbox."`
}

type toolFiles struct {
	From   word `yaml:"from" need:"yes" is:"path" doc:"The folder."`
	Digest word `yaml:"digest" need:"yes" is:"digest" doc:"The digest over its tree, which remit tool digest prints. Files that changed are not run."`
}

type mountFile struct {
	From  word `yaml:"from" need:"yes" is:"path" doc:"The file or folder of the host."`
	At    word `yaml:"at" need:"yes" is:"path" doc:"Where the tool sees it."`
	Write bool `yaml:"write" doc:"Whether the tool may write. Left out: false."`
}

type toolLimits struct {
	Memory    *size  `yaml:"memory" doc:"Memory, such as 256MiB, which is what is left out; at most 64GiB."`
	CPU       *int32 `yaml:"cpu" doc:"Percent of one processor. Left out: 100."`
	Processes *int32 `yaml:"processes" doc:"Processes and threads at once. Left out: 64."`
	Wall      span   `yaml:"wall" doc:"How long one sandbox lives. Left out: 5m; at most 24h."`
	Output    *size  `yaml:"output" doc:"How much the server may write in all. Left out: 16MiB; at most 1GiB."`
}

// size is a number of bytes, written as 256MiB.
type size struct {
	n    int64
	line int
}

var sizeFormat = expr(`^([1-9][0-9]{0,5})(KiB|MiB|GiB)$`)

func (s *size) read(d *decoder, n *yaml.Node, _ string) {
	s.line = n.Line
	m := sizeFormat.FindStringSubmatch(n.Value)
	if n.Kind != yaml.ScalarNode || m == nil {
		d.add(n, "expected a size, found %s: write 64KiB, 256MiB or 1GiB", describe(n))
		return
	}
	s.n, _ = strconv.ParseInt(m[1], 10, 64)
	s.n <<= map[string]int{"KiB": 10, "MiB": 20, "GiB": 30}[m[2]]
}

func (*size) schema(string) map[string]any {
	return map[string]any{"type": "string", "pattern": sizeFormat.String()}
}

// tool takes the server of a tool; its identity was taken as an agent's.
func (b *builder) tool(file string, f *toolFile) {
	b.agent(file, &f.agentFile)
	name := remit.Name("tool/" + f.Name.s)
	s := f.Server
	if s == nil {
		if f.Pins.s != "" {
			b.out.add(file, f.Pins.line, "pins: there is no server whose tools could be compared: add server, or remove pins")
		}
		return
	}
	t := remit.Tool{Name: name, URL: s.URL.s, CA: s.CA.s, Pins: f.Pins.s, Line: place(file, f.Name.line)}
	if s.URL.s != "" {
		b.remoteTool(file, f)
	} else {
		b.localTool(file, f, &t)
	}
	if _, ok := b.set.Files[t.Pins]; t.Pins != "" && !ok {
		b.out.add(file, f.Pins.line, "pins: there is no file %q: write its path in the configuration directory; remit tool pin makes it", clip(t.Pins))
	}
	b.set.Tools[name] = t
}

func (b *builder) remoteTool(file string, f *toolFile) {
	s := f.Server
	if s.Files != nil || s.Mounts != nil || s.Environment != nil || s.Limits != nil || s.Sandbox.s != "" || s.Checkpoint {
		b.out.add(file, s.URL.line, "server: files, mounts, environment, limits, sandbox and checkpoint are for a command: a remote server runs where Remit has no hand")
	}
}

func (b *builder) localTool(file string, f *toolFile, t *remit.Tool) {
	s := f.Server
	// The identity of a tool in a sandbox is that sandbox's socket (S27): no process outside may have it, too.
	if f.Attest != nil || f.Launch != nil || !b.set.Agents[t.Name].ID.MemberOf(b.td) {
		b.out.add(file, f.Name.line, "attest, launch or an id of another trust domain give its identity to processes outside its sandbox: remove them, or the server's command")
	}
	if s.CA.s != "" {
		b.out.add(file, s.CA.line, "server: ca is for a url: remove it")
	}
	if len(s.Command) == 0 || !path.IsAbs(s.Command[0].s) {
		b.out.add(file, f.Name.line, "server: command begins with the absolute path of the program in the sandbox, such as /usr/bin/node")
	}
	for _, w := range s.Command {
		b.noZero(file, w)
		t.Command = append(t.Command, w.s)
	}
	b.sandboxOf(file, f.Name.line, &boxFile{Tier: s.Sandbox, Files: s.Files, Mounts: s.Mounts, Environment: s.Environment, Limits: s.Limits}, t)
	t.Checkpoint = s.Checkpoint
	writes := func(m remit.ToolMount) bool { return m.Write }
	if t.Checkpoint && (t.Sandbox != remit.TierKernel || slices.ContainsFunc(t.Mounts, writes)) {
		b.out.add(file, f.Name.line, "server: checkpoint is for sandbox: kernel and for mounts that are only read: remove it, or change these")
	}
}

// sandboxOf reads what stands in a sandbox and bounds it.
func (b *builder) sandboxOf(file string, line int, s *boxFile, t *remit.Tool) {
	if s.Files != nil {
		t.Files = remit.ToolFiles{From: s.Files.From.s, Digest: remit.Digest(s.Files.Digest.s)}
		b.cleanPath(file, "files: from", s.Files.From)
	}
	at := map[string]bool{"/tool": s.Files != nil}
	for _, m := range s.Mounts {
		b.cleanPath(file, "mounts: from", m.From)
		b.cleanPath(file, "mounts: at", m.At)
		if at[m.At.s] || ownPath(m.At.s) {
			b.out.add(file, m.At.line, "mounts: at: %s is taken: choose another place", clip(m.At.s))
		}
		at[m.At.s] = true
		t.Mounts = append(t.Mounts, remit.ToolMount{From: m.From.s, At: m.At.s, Write: m.Write})
	}
	for _, key := range slices.Sorted(maps.Keys(s.Environment)) {
		if !formats["variable"].pattern.MatchString(key) {
			b.out.add(file, line, "environment: %q: write %s", clip(key), formats["variable"].write)
		}
		if t.Environment == nil {
			t.Environment = map[string]string{}
		}
		b.noZero(file, s.Environment[key])
		t.Environment[key] = s.Environment[key].s
	}
	t.Limits = b.toolLimits(file, line, s.Limits)
	if t.Sandbox = remit.Tier(s.Tier.s); t.Sandbox == "" {
		t.Sandbox = remit.TierKernel
	}
}

// cleanPath demands a path without detours, so that what is compared is what is mounted.
func (b *builder) cleanPath(file, key string, w word) {
	if w.s != "" && (path.Clean(w.s) != w.s || w.s == "/") {
		b.out.add(file, w.line, "%s: %q: write an absolute path below / without . and ..", key, clip(w.s))
	}
}

// noZero refuses what would end a C string before its end.
func (b *builder) noZero(file string, w word) {
	if strings.ContainsRune(w.s, 0) {
		b.out.add(file, w.line, "a zero byte cannot be handed to a program: remove it")
	}
}

// ownPath are the places that every sandbox has.
func ownPath(at string) bool {
	for _, p := range []string{"/proc", "/dev", "/sys", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/tmp", "/sock", "/run"} {
		if at == p || strings.HasPrefix(at, p+"/") {
			return true
		}
	}
	return false
}

func (b *builder) toolLimits(file string, line int, l *toolLimits) remit.ToolLimits {
	out := remit.ToolLimits{Memory: defaultMemory, CPU: defaultCPU, Processes: defaultProcesses, Wall: defaultWall, Output: defaultOutput}
	if l == nil {
		return out
	}
	bytes := func(key string, s *size, into *int64, most int64) {
		if s == nil {
			return
		}
		if *into = s.n; s.n > most {
			b.out.add(file, s.line, "limits: %s: at most %dMiB", key, most>>20)
		}
	}
	count := func(key string, n *int32, into *int, most int32) {
		if n == nil {
			return
		}
		if *into = int(*n); *n < 1 || *n > most {
			b.out.add(file, line, "limits: %s: %d: write 1 to %d", key, *n, most)
		}
	}
	bytes("memory", l.Memory, &out.Memory, maxMemory)
	bytes("output", l.Output, &out.Output, maxOutput)
	count("cpu", l.CPU, &out.CPU, maxCPU)
	count("processes", l.Processes, &out.Processes, maxProcesses)
	out.Wall = l.Wall.or(defaultWall, maxWall, file, "limits: wall", b.out)
	return out
}

// checkPins reports files of pins that no tool names: they would be silently without effect.
func (b *builder) checkPins() {
	used := map[string]bool{}
	for _, t := range b.set.Tools {
		used[t.Pins] = true
	}
	for _, name := range slices.Sorted(maps.Keys(b.set.Files)) {
		if strings.HasSuffix(name, pinsSuffix) && !used[name] && !b.anyBroken("Tool/") {
			b.out.add(name, 0, "no Tool names this file: add pins: %s to one, or remove it", name)
		}
	}
}

func (b *builder) anyBroken(prefix string) bool {
	for key := range b.broken {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}
