// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mark says that the statement below it is a guard of a rule, and which tests go red without it.
type mark struct {
	Rule  string
	Tests []string
	Dir   string // package of the tests, relative to the module
	File  string // relative to the module
	Line  int
	Func  string
	Guard string // names the statement at run time; marks above the same statement share it
}

// where names the guard's place in a way that a moved line does not change.
func (m mark) where() string { return m.File + ":" + m.Func }

func (m mark) number() int {
	n, _ := strconv.Atoi(m.Rule[1:]) // markLine lets only digits through
	return n
}

var (
	markStart = []byte("//remit:guard")
	markLine  = regexp.MustCompile(`^\s*//remit:guard (S[0-9]+) ([A-Za-z0-9_/,]+)(?: ([a-z0-9_/]+))?$`)
)

// source is one file with marks, parsed.
type source struct {
	path  string // relative to the module
	text  []byte
	set   *token.FileSet
	file  *ast.File
	marks []mark
	edits []edit
}

// edit inserts text before a byte of the file.
type edit struct {
	at   int
	text string
}

// collect finds every mark below root and prepares the edits that make its guard one that can be switched off.
func collect(root string) ([]*source, error) {
	var found []*source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(root, path, d.Name())
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(text, markStart) {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		s, err := readSource(rel, text)
		if err == nil && len(s.marks) > 0 {
			found = append(found, s)
		}
		return err
	})
	return found, err
}

// skip leaves out nested modules, what git ignores, and this program.
func skip(root, path, name string) error {
	if path == root {
		return nil
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || name == ".git" || name == "bin" || name == "testdata" || name == "guards" {
		return fs.SkipDir
	}
	return nil
}

func readSource(rel string, text []byte) (*source, error) {
	s := &source{path: rel, text: text, set: token.NewFileSet()}
	var err error
	if s.file, err = parser.ParseFile(s.set, rel, text, parser.ParseComments); err != nil {
		return nil, err
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if !strings.HasPrefix(strings.TrimSpace(line), string(markStart)) {
			continue
		}
		f := markLine.FindStringSubmatch(line)
		if f == nil {
			return nil, fmt.Errorf("%s:%d: read mark: want //remit:guard RULE TEST[,TEST] [PACKAGE-DIR]", rel, i+1)
		}
		m := mark{Rule: f[1], Tests: strings.Split(f[2], ","), Dir: f[3], File: rel, Line: i + 1}
		if m.Dir == "" {
			m.Dir = filepath.ToSlash(filepath.Dir(rel))
		}
		below := i + 1 // marks may stand above each other
		for below < len(lines) && markLine.MatchString(lines[below]) {
			below++
		}
		if err := s.place(&m, below+1); err != nil {
			return nil, err
		}
		s.marks = append(s.marks, m)
	}
	return s, nil
}

// place finds the outermost statement, or member of a literal, that begins on the line.
func (s *source) place(m *mark, line int) error {
	var guard ast.Node
	ast.Inspect(s.file, func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok && s.line(f.Pos()) <= line && line <= s.line(f.End()) {
			m.Func = funcName(f)
		}
		switch n.(type) {
		case ast.Stmt, *ast.KeyValueExpr:
			if guard == nil && s.line(n.Pos()) == line {
				guard = n
			}
		}
		return guard == nil
	})
	if guard == nil {
		return fmt.Errorf("%s:%d: mark stands above no statement: put it on the line directly above the guard", s.path, m.Line)
	}
	m.Guard = fmt.Sprintf("%s:%d", s.path, line)
	if slices.ContainsFunc(s.marks, func(o mark) bool { return o.Guard == m.Guard }) {
		return nil
	}
	if err := s.wrap(guard, m.Guard); err != nil {
		return fmt.Errorf("%s:%d: %w", s.path, m.Line, err)
	}
	return nil
}

// wrap makes the guard conditional. A condition that is switched off is false, so that its body never runs; another
// statement does not run; a member of a literal has its zero value.
func (s *source) wrap(n ast.Node, guard string) error {
	on := "remitGuard(" + strconv.Quote(guard) + ")"
	switch n := n.(type) {
	case *ast.IfStmt:
		s.around(n.Cond, on+" && (", ")")
	case *ast.CaseClause:
		if !s.tagless(n) || len(n.List) == 0 {
			return fmt.Errorf("a case of a switch over a value cannot be switched off: write the guard as an if")
		}
		for _, e := range n.List {
			s.around(e, on+" && (", ")")
		}
	case *ast.KeyValueExpr:
		s.around(n.Value, "remitGuardValue("+strconv.Quote(guard)+", ", ")")
	case *ast.DeclStmt, *ast.LabeledStmt, *ast.CommClause:
		return fmt.Errorf("%T cannot be switched off: write the guard as an if", n)
	case *ast.AssignStmt:
		if n.Tok == token.DEFINE {
			return fmt.Errorf("a definition cannot be switched off: write the guard as an if")
		}
		s.around(n, "if "+on+" { ", " }")
	default:
		s.around(n, "if "+on+" { ", " }")
	}
	return nil
}

// tagless reports whether the case belongs to a switch without a value.
func (s *source) tagless(c *ast.CaseClause) (yes bool) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sw, ok := n.(*ast.SwitchStmt); ok && sw.Tag == nil && slices.Contains(sw.Body.List, ast.Stmt(c)) {
			yes = true
		}
		return !yes
	})
	return yes
}

func (s *source) around(n ast.Node, before, after string) {
	s.edits = append(s.edits, edit{s.set.Position(n.Pos()).Offset, before}, edit{s.set.Position(n.End()).Offset, after})
}

// mutant returns the file with its edits, line for line.
func (s *source) mutant() []byte {
	slices.SortStableFunc(s.edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	var out bytes.Buffer
	last := 0
	for _, e := range s.edits {
		out.Write(s.text[last:e.at])
		out.WriteString(e.text)
		last = e.at
	}
	out.Write(s.text[last:])
	return out.Bytes()
}

func (s *source) line(p token.Pos) int { return s.set.Position(p).Line }

func funcName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if gen, ok := typ.(*ast.IndexExpr); ok {
		typ = gen.X
	}
	id, ok := typ.(*ast.Ident)
	if !ok {
		return f.Name.Name
	}
	return id.Name + "." + f.Name.Name
}
