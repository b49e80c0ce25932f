// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// prose are the words that follow the product's name where a text speaks of it, and names no command.
var prose = strings.Fields("are as deny gives goes in is make of receipt schema signal statically would")

// labels separate what is signed or encrypted from all else.
var labels = []string{"remit ledger key", "remit ledger payload", "remit state row"}

var named = regexp.MustCompile(`(?:^|[^A-Za-z0-9_./-])remit(?: --[a-z-]+(?: (?:[A-Z]+|%s))?)* ([a-z%][a-z0-9%-]*)(?: ([a-z%][a-z0-9%-]*))?`)

// TestNamedCommandsExist: a hint that names a command which is none costs the reader the time in which it was to help. Every text of the
// product is read; what a noun that is missing is listed with has to name each noun.
func TestNamedCommandsExist(t *testing.T) {
	root := (&app{}).root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("completion")
	texts, missing, listed := 0, map[string]string{}, map[string]bool{}
	each(t, func(at string, n ast.Node) {
		switch n := n.(type) {
		case *ast.BasicLit:
			text, err := strconv.Unquote(n.Value)
			if n.Kind != token.STRING || err != nil {
				return
			}
			if slices.ContainsFunc(labels, func(l string) bool { return strings.HasPrefix(text, l) }) {
				return
			}
			for _, m := range named.FindAllStringSubmatch(text, -1) {
				texts++
				if why := unknown(root, m[1], m[2]); why != "" {
					t.Errorf("%s: %q: %s", at, text, why)
				}
			}
		case *ast.KeyValueExpr:
			if k, ok := n.Key.(*ast.BasicLit); ok && strings.HasPrefix(at, "internal/server/ops.go") {
				text, _ := strconv.Unquote(k.Value)
				listed[text] = true
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "notFound" && len(n.Args) == 2 && strings.HasPrefix(at, "internal/server/") {
				if what, ok := n.Args[0].(*ast.BasicLit); ok {
					text, _ := strconv.Unquote(what.Value)
					missing[text] = at
				}
			}
		}
	})
	if texts < 100 || len(missing) < 15 {
		t.Errorf("%d texts name commands, %d nouns may be missing: the scan finds too few", texts, len(missing))
	}
	for what, at := range missing {
		if !listed[what] {
			t.Errorf("%s: nothing says how to list a %s", at, what)
		}
	}
}

// unknown says why the words after the product's name are neither prose nor a command.
func unknown(root *cobra.Command, word, next string) string {
	if slices.Contains(prose, word) {
		return ""
	}
	c := child(root, word)
	if c == nil {
		return "there is no command " + word
	}
	group := c.HasSubCommands() && !strings.Contains(c.Use, "[") && word != "login"
	if next != "" && (group || slices.Contains([]string{"list", "show"}, next)) && child(c, next) == nil {
		return "there is no command " + word + " " + next
	}
	return ""
}

func child(c *cobra.Command, name string) *cobra.Command {
	for _, sub := range c.Commands() {
		if sub.Name() == name || sub.HasAlias(name) {
			return sub
		}
	}
	return nil
}

// each visits what stands in the product's own Go files.
func each(t *testing.T, visit func(at string, n ast.Node)) {
	t.Helper()
	files := token.NewFileSet()
	for _, dir := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if n != nil {
					p := files.Position(n.Pos())
					visit(strings.TrimPrefix(filepath.ToSlash(p.Filename), "../../")+":"+strconv.Itoa(p.Line), n)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
