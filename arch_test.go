// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayImport says which of our packages a package may import; "" is the root, "*" is everything. A package that is not
// listed fails: state its place first.
var mayImport = map[string][]string{
	"": nil,
	// main is also the parts of a sandbox, under other names: dispatched before anything else.
	"cmd/remit":                          {"internal/cli", "internal/sandbox", "internal/sandbox/firecracker", "internal/sandbox/shim"},
	"internal/authorizer":                {""},
	"internal/identity":                  {""},
	"internal/durable":                   nil,
	"internal/identity/issuer":           {"", "internal/identity", "internal/durable"},
	"internal/identity/federation":       {"", "internal/identity", "internal/durable"},
	"internal/identity/workloadapi":      {"", "internal/identity"},
	"internal/policy":                    {""},
	"internal/run":                       {""},
	"internal/evidence":                  {""},
	"internal/evidence/attestation":      {"", "internal/evidence", "internal/signing"},
	"internal/evidence/citoken":          {"", "internal/evidence"},
	"internal/evidence/ticket":           {"", "internal/evidence"},
	"internal/evidence/registry":         {"", "internal/evidence"},
	"internal/evidence/evidencetest":     {"", "internal/evidence"},
	"internal/broker":                    {"", "internal/credential"},
	"internal/signing":                   nil,
	"internal/signal":                    {""},
	"internal/telemetry":                 {""},
	"internal/telemetry/telemetrytest":   nil,
	"internal/behaviour":                 {""},
	"internal/learn":                     {""},
	"internal/bundle":                    {"", "internal/signing"},
	"internal/credential":                {""},
	"internal/credential/external":       {"", "internal/credential"},
	"internal/credential/kubernetes":     {"", "internal/credential"},
	"internal/credential/credentialtest": {"", "internal/credential"},
	"internal/credential/postgres":       {"", "internal/credential"},
	"internal/gateway":                   {""},
	"internal/gateway/token":             {"", "internal/gateway"},
	"internal/gateway/authzen":           {"", "internal/gateway"},
	"internal/gateway/admin":             {"", "internal/gateway"},
	"internal/gateway/login":             {"", "internal/gateway"},
	"internal/gateway/login/logintest":   nil,
	"internal/gateway/egress":            {"", "internal/gateway"},
	"internal/gateway/kubernetes":        {"", "internal/gateway"},
	"internal/gateway/mcp":               {"", "internal/gateway"},
	"internal/gateway/postgres":          {"", "internal/gateway"},
	"internal/gateway/gatewaytest":       {""},
	"internal/sandbox":                   {""},
	"internal/sandbox/cgroup":            {"", "internal/sandbox"},
	"internal/sandbox/gvisor":            {"", "internal/sandbox", "internal/sandbox/cgroup", "internal/sandbox/gvisor/filters", "internal/sandbox/gvisor/trace", "internal/sandbox/gvisor/unmount"},
	"internal/sandbox/gvisor/filters":    {},
	"internal/sandbox/gvisor/trace":      {"internal/sandbox"},
	"internal/sandbox/gvisor/unmount":    {},
	"internal/sandbox/process":           {"", "internal/sandbox", "internal/sandbox/cgroup"},
	"internal/sandbox/firecracker":       {"", "internal/sandbox", "internal/sandbox/cgroup"},
	"internal/sandbox/shim":              nil,
	"internal/sandbox/sandboxtest":       {"", "internal/sandbox"},
	"internal/sandbox/sandboxtest/vm":    {"internal/sandbox/firecracker"},
	"internal/sandbox/sandboxtest/box":   {"internal/sandbox", "internal/sandbox/gvisor", "internal/sandbox/process", "internal/sandbox/shim"},
	"internal/tool":                      {""},
	"internal/tool/tooltest":             nil,
	"internal/tool/tooltest/hostile":     nil,
	"internal/ledger":                    {"", "internal/durable"},
	"internal/ledger/witness":            {"", "internal/ledger", "internal/durable"},
	"internal/keyfile":                   {"", "internal/durable"},
	"internal/store":                     {""},
	"internal/config":                    {""},
	"internal/api":                       {""},
	"internal/testcluster":               nil,
	"internal/testpostgres":              nil,
	"internal/server":                    {"*"},
	"internal/quickstart":                {"*"},
	"internal/cli/execcredential":        {""},
	// cli also works without a server: it verifies logs, checks, tests and signs configuration, and serves a witness.
	"internal/cli":         {"", "internal/api", "internal/cli/execcredential", "internal/config", "internal/durable", "internal/gateway/mcp", "internal/server", "internal/ledger", "internal/ledger/witness", "internal/quickstart", "internal/signal"},
	"test/clients":         {"*"},
	"test/story":           {"", "internal/testpostgres"},
	"test/story/storytest": nil,
	"test/demo":            {"*"},
	"test/support":         {"*"},
	"test/refund":          {"*"},
	"test/takeover":        {"*"},
	// A user's own: programs that know Remit by its protocols only.
	"examples/orchestrator":        nil,
	"examples/refund/agent":        {"examples/orchestrator"},
	"examples/refund/knowledge":    nil,
	"examples/refund/payments":     nil,
	"examples/login":               nil,
	"examples/refund/transactions": {"examples/login"},
	"examples/support/agent":       {"examples/orchestrator"},
	"examples/support/desk":        nil,
	"examples/support/runner":      nil,
	"examples/takeover/agent":      {"examples/login", "examples/orchestrator"},
	"examples/takeover/mailbox":    nil,
	"test/modes":                   {"*"},
	"test/report":                  nil,
	"test/guards":                  nil,
	"test/attack":                  {"*"},
	"test/bench":                   {"*"},
	"test/e2e":                     {"*"},
	"test/eval":                    {"*"},
	"test/fleet":                   {"", "internal/behaviour"},
	"test/script":                  {"*"},

	"internal/sandbox/gvisor/filters/generate": {"internal/sandbox/gvisor/filters"},
}

// heavy third-party packages stay where their technology is.
var heavy = map[string][]string{
	"k8s.io/":                                {"internal/credential/kubernetes", "internal/gateway/kubernetes", "internal/server", "test/demo", "test/bench", "test/attack", "test/eval"},
	"github.com/open-policy-agent/":          {"internal/policy"},
	"github.com/transparency-dev/tessera":    {"internal/ledger", "test/bench"},
	"zombiezen.com/go/sqlite":                {"internal/store"},
	"github.com/google/go-containerregistry": {"internal/evidence/registry", "test/demo", "test/attack"},
	"github.com/spf13/cobra":                 {"internal/cli"},
	"go.opentelemetry.io/":                   {"internal/telemetry", "internal/telemetry/telemetrytest"},
	"github.com/jackc/":                      {"internal/credential/postgres", "examples/login", "examples/refund/transactions", "examples/takeover/agent", "test/bench", "test/refund", "test/story", "test/takeover", "test/attack"},
	"golang.org/x/crypto/ssh":                {"internal/bundle"},
	"github.com/coreos/go-oidc":              {"internal/gateway/login"},
	"github.com/modelcontextprotocol/": {"internal/gateway/mcp", "examples/orchestrator", "examples/refund/knowledge", "examples/refund/payments",
		"examples/refund/transactions", "examples/support/desk", "examples/support/runner", "examples/takeover/mailbox", "test/eval"},
	"filippo.io/age":                         {"internal/keyfile"},
	"github.com/aws/":                        {"internal/gateway/egress"},
	"gvisor.dev/":                            {"internal/sandbox/gvisor", "internal/sandbox/gvisor/filters", "internal/sandbox/gvisor/filters/generate", "internal/sandbox/gvisor/trace"},
	"github.com/landlock-lsm/":               {"internal/sandbox/process"},
	"github.com/elastic/go-seccomp-bpf":      {"internal/sandbox/process"},
	"github.com/opencontainers/runtime-spec": {"internal/sandbox/gvisor"},
}

// big names the files over 500 lines and functions over 60 that are allowed, with the reason.
var big = map[string]string{}

// early names the files that may have an init, with the reason.
var early = map[string]string{
	"remit/internal/sandbox/gvisor/early_linux.go":           "a part of a sandbox starts before the packages that it does not need",
	"remit/internal/sandbox/process/early_linux.go":          "likewise",
	"remit/internal/sandbox/shim/early.go":                   "likewise",
	"remit/internal/sandbox/gvisor/unmount/unmount_linux.go": "likewise",
}

type goPackage struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func ours(path string) (string, bool) {
	if path == "remit" {
		return "", true
	}
	return strings.CutPrefix(path, "remit/")
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		name, _ := ours(p.ImportPath)
		allowed, listed := mayImport[name]
		if !listed {
			t.Errorf("%s has no place: list it in arch_test.go with what it may import", p.ImportPath)
		}
		for _, imp := range p.Imports {
			if o, ok := ours(imp); ok && !slices.Contains(allowed, o) && !slices.Contains(allowed, "*") {
				t.Errorf("%s imports %s, which its place does not allow", p.ImportPath, imp)
			}
			checkHeavy(t, name, imp)
			if name == "" && strings.Contains(strings.Split(imp, "/")[0], ".") && imp != "github.com/spiffe/go-spiffe/v2/spiffeid" {
				t.Errorf("the root package imports %s", imp)
			}
			if imp == "testing" && !strings.HasSuffix(name, "test") && name != "internal/testcluster" {
				t.Errorf("%s imports testing", p.ImportPath)
			}
		}
	}
}

func checkHeavy(t *testing.T, name, imp string) {
	t.Helper()
	for prefix, where := range heavy {
		if strings.HasPrefix(imp, prefix) && !slices.Contains(where, name) {
			t.Errorf("%s imports %s; only %v may", name, imp, where)
		}
	}
}

// TestShape checks package comments, the licence line, doc comments, and the sizes of files and functions.
func TestShape(t *testing.T) {
	for _, p := range packages(t) {
		documented := false
		for _, f := range p.GoFiles {
			documented = checkFile(t, filepath.Join(p.Dir, f), p.ImportPath) || documented
		}
		if !documented && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func checkFile(t *testing.T, path, pkg string) (documented bool) {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := pkg + "/" + filepath.Base(path)
	if !bytes.HasPrefix(src, []byte("// SPDX-License-Identifier: Apache-2.0\n")) {
		t.Errorf("%s does not start with the SPDX line", name)
	}
	if n := bytes.Count(src, []byte("\n")); n > 500 && big[name] == "" {
		t.Errorf("%s has %d lines", name, n)
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if n := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; n > 60 && big[name+":"+f.Name.Name] == "" {
			t.Errorf("%s: %s has %d lines", name, f.Name.Name, n)
		}
		if f.Name.Name == "init" && f.Recv == nil && early[name] == "" {
			t.Errorf("%s has an init", name)
		}
		if f.Name.IsExported() && f.Doc == nil && exportedReceiver(f) && !strings.HasSuffix(name, "_test.go") && !obvious[f.Name.Name] {
			t.Errorf("%s: %s has no doc comment", name, f.Name.Name)
		}
	}
	return file.Doc != nil
}

// obvious methods are documented by the interface that they implement.
var obvious = map[string]bool{"String": true, "Error": true, "Unwrap": true, "MarshalText": true, "MarshalJSON": true}

func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// TestNothingOfThisMachine keeps absolute home and work paths out of the tree.
func TestNothingOfThisMachine(t *testing.T) {
	home, _ := os.UserHomeDir()
	wd, _ := os.Getwd()
	needles := [][]byte{[]byte(home + "/"), []byte(wd + "/")}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		scan := bufio.NewScanner(f)
		for scan.Scan() {
			for _, n := range needles {
				if len(n) > 2 && bytes.Contains(scan.Bytes(), n) {
					t.Errorf("%s names a path of this machine", path)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestGuards: every mark of a guard stands above a statement and names a test that exists; no guard of THREAT_MODEL.md lost
// its mark; every rule that THREAT_MODEL.md claims has one. Nothing is switched off here: make test-guards does that, and
// make lint demands that the table lists every guard.
func TestGuards(t *testing.T) {
	if out, err := exec.Command("go", "run", "./test/guards", "-check", "-unlisted").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
