// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"slices"
	"testing"

	"remit"
	"remit/internal/policy"
)

// TestDiffersNamesTheScope: each argument of what would be granted is named where it differs, is new or is gone; of what is not granted none.
func TestDiffersNamesTheScope(t *testing.T) {
	a := policy.Answer{Effect: remit.Allow, Scope: remit.Args{"app": remit.StringValue("a"), "rows": remit.IntValue(7), "gone": remit.IntValue(1)}}
	b := policy.Answer{Effect: remit.Allow, Scope: remit.Args{"app": remit.StringValue("b"), "rows": remit.IntValue(7), "new": remit.IntValue(1)}}
	if got, want := a.Differs(&b), []string{"scope.app", "scope.gone", "scope.new"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := a.Differs(&a); got != nil {
		t.Errorf("%q of the same", got)
	}
	b.Effect = remit.Deny
	if got := a.Differs(&b); !slices.Equal(got, []string{"effect"}) {
		t.Errorf("%q of what is not granted", got)
	}
}
