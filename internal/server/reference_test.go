// SPDX-License-Identifier: Apache-2.0

package server

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/reference/drivers.md")

const driversFile = "../../docs/reference/drivers.md"

// TestDriverReference keeps the reference of the drivers' keys equal to the structs that read them, and their comments.
func TestDriverReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# The keys of targets and evidence sources\n\n<!-- Made from the structs that read the keys; " +
		"go test ./internal/server -run TestDriverReference -update writes it. -->\n\nThey stand beside the keys that " +
		"[every Target and EvidenceSource has](files.md).\n")
	b.WriteString("\n## Target, type external\n\nNo keys: an enforcement point of yours asks by AuthZEN and acts; Remit mints nothing.\n")
	for _, d := range []struct{ title, dir, file, typ string }{
		{"Target, type kubernetes", "../credential/kubernetes", "", "Config"},
		{"Target, type kubernetes: how its API server proves itself", ".", "drivers.go", "kubernetesTarget"},
		{"Target, type http", "../gateway/egress", "", "TargetConfig"},
		{"Target, type postgres", "../credential/postgres", "", "Config"},
		{"Target, type postgres: how Remit proves itself", ".", "postgres.go", "postgresTarget"},
		{"EvidenceSource, types scan, provenance, ci", "../evidence/attestation", "", "Config"},
		{"EvidenceSource, type ci-token", "../evidence/citoken", "", "Config"},
		{"EvidenceSource, type ticket", "../evidence/ticket", "", "Config"},
	} {
		fmt.Fprintf(&b, "\n## %s\n", d.title)
		writeStruct(t, &b, structsOf(t, d.dir), d.typ, "")
	}
	if *update {
		if err := os.WriteFile(driversFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(driversFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), b.String()); diff != "" {
		t.Errorf("%s is not as the structs say: run go test ./internal/server -run TestDriverReference -update\n%s", driversFile, diff)
	}
}

// structsOf parses the structs of a package.
func structsOf(t *testing.T, dir string) map[string]*ast.StructType {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*ast.StructType{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					out[spec.Name.Name] = s
				}
			}
			return true
		})
	}
	return out
}

func writeStruct(t *testing.T, b *strings.Builder, all map[string]*ast.StructType, name, path string) {
	t.Helper()
	s := all[name]
	if s == nil {
		t.Fatalf("there is no struct %s", name)
	}
	b.WriteString("\n| key | value | |\n|---|---|---|\n")
	var inner [][2]string
	for _, f := range s.Fields.List {
		if f.Tag == nil || len(f.Names) == 0 {
			continue
		}
		key, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml"), ",")
		if key == "" || key == "-" {
			continue
		}
		text := strings.Join(strings.Fields(f.Doc.Text()), " ")
		if text == "" {
			t.Errorf("%s.%s has no comment", name, f.Names[0].Name)
		}
		typ := types.ExprString(f.Type)
		if nested := strings.TrimLeft(typ, "[]*"); all[nested] != nil && nested != "SecretRef" {
			inner = append(inner, [2]string{nested, strings.TrimPrefix(path+"."+key, ".")})
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, valueOf(typ), strings.ReplaceAll(text, "|", "\\|"))
	}
	for _, n := range inner {
		fmt.Fprintf(b, "\n### %s\n", n[1])
		writeStruct(t, b, all, n[0], n[1])
	}
}

func valueOf(typ string) string {
	if elem, list := strings.CutPrefix(typ, "[]"); list {
		return "list of " + valueOf(elem)
	}
	words := map[string]string{"string": "text", "bool": "true or false", "time.Duration": "duration", "Mode": "text", "map[string]string": "mapping of names to text",
		"config.SecretRef": "{file: PATH} or {env: NAME}", "SecretRef": "{file: PATH} or {env: NAME}", "int": "whole number"}
	if w, ok := words[typ]; ok {
		return w
	}
	if slices.Contains([]string{"Signer", "Key"}, typ) || strings.HasPrefix(typ, "*") {
		return "mapping"
	}
	return typ
}

// What apply knows, remit workflow check knows, too.
func TestOfflineKnowsEveryType(t *testing.T) {
	for name := range targetDrivers {
		if _, ok := keysOf()["Target"][name]; !ok && name != "memory" { // a test's own
			t.Errorf("a target of type %s is unknown offline", name)
		}
	}
	for name := range evidenceSources {
		if _, ok := keysOf()["EvidenceSource"][name]; !ok {
			t.Errorf("an evidence source of type %s is unknown offline", name)
		}
	}
}
