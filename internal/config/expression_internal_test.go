// SPDX-License-Identifier: Apache-2.0

package config

import "testing"

// Expressions are compiled at their first use; a wrong one must not wait for it.
func TestExpressionsCompile(t *testing.T) {
	for name, f := range formats {
		if f.pattern.MatchString("") { // panics when it does not compile
			t.Errorf("%s takes nothing", name)
		}
	}
	for _, e := range []expression{dayFormat, yamlLine, termFormat, argFormat} {
		e.MatchString("")
	}
}
