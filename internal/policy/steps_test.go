// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"remit"
	"remit/internal/policy"
)

// Whatever denies, remit why says what would have to be true, even when the reason carries nothing but its code.
func TestEveryReasonHasItsNextStep(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../decision.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Compile(policy.Config{Digest: remit.DigestOf(nil)})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(f, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if ident, named := spec.Type.(*ast.Ident); !named || ident.Name != "ReasonCode" {
			return true
		}
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		n++
		d := &remit.Decision{Reasons: []remit.Reason{{Code: remit.ReasonCode(code), Of: "part"}}}
		if e := policy.Explain(d, p); len(e.Conditions) == 0 || e.Conditions[0].Fix == "" {
			t.Errorf("%s: %+v", code, e.Conditions)
		}
		return true
	})
	if n < 25 {
		t.Errorf("found %d codes", n)
	}
}
