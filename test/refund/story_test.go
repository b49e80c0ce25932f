// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"strings"
	"testing"

	"remit/internal/testpostgres"
	"remit/test/story/storytest"
)

// TestStory plays the story on a remit of this tree.
func TestStory(t *testing.T) {
	bin := build(t)
	storytest.Checked(t, bin, "../../examples/refund/config")
	if out, err := storytest.Play(t, bin, "refund", "-examples", "../../examples/refund"); err != nil || !strings.Contains(out, "Every step went as told") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStoryFindsAHole plays it with rules that have a hole: the story has to fail there, and to say so.
func TestStoryFindsAHole(t *testing.T) {
	bin := build(t)
	for _, h := range []struct{ name, rule, hole, found string }{
		{"any customer's rows", "target: read-transactions/read, where: {customer: $customer,", "target: read-transactions/read, where: {customer: {any: true},",
			"another customer: it is not denied"},
		{"nobody approves", "when: {amount: {above: 100}}", "when: {amount: {above: 5000}}", "it is not denied with approval_needed"},
	} {
		t.Run(h.name, func(t *testing.T) {
			examples := storytest.Holed(t, "../../examples/refund", "config/refund.yaml", h.rule, h.hole)
			if out, err := storytest.Play(t, bin, "refund", "-examples", examples); err == nil || !strings.Contains(out, h.found) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// build skips where the story cannot be played, and returns a folder with its programs.
func build(t *testing.T) string {
	t.Helper()
	if _, err := testpostgres.Bin(); errors.Is(err, testpostgres.ErrMissing) {
		t.Skip(err)
	}
	if _, err := os.Stat("../node/node_modules/oidc-provider"); err != nil {
		t.Skip("the story needs oidc-provider (make node)")
	}
	return storytest.Build(t, "refund")
}
