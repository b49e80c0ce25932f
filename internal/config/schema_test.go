// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"bytes"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"remit/internal/config"
)

// TestExtra: a driver's Config closes the keys of its type and leaves other types alone.
func TestExtra(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema(config.Extra{Kind: "Target", Type: "t", Config: driver{}})))
	must(t, err)
	c := jsonschema.NewCompiler()
	must(t, c.AddResource("remit.json", doc))
	s, err := c.Compile("remit.json")
	must(t, err)
	for text, good := range map[string]bool{
		"{kind: Target, name: x, type: t, production: true, server: s, timeout: 5s, token: {env: X}, inner: {port: 1}}": true,
		"{kind: Target, name: x, type: other, sever: s}":                                                                true,
		"{kind: Target, name: x, type: t, sever: s}":                                                                    false,
		"{kind: Target, name: x, type: t, timeout: 5}":                                                                  false,
		"{kind: Target, name: x, type: t, token: hunter2}":                                                              false,
		"{kind: Target, name: x, type: t, token: {env: X, file: Y}}":                                                    false,
		"{kind: Target, name: x, type: t, inner: {port: 70000}}":                                                        false,
		"{kind: Target, name: x, type: t, now: x}":                                                                      false,
		"{kind: EvidenceSource, name: x, type: scan, production: true}":                                                 true, // the source's own table judges its keys
		"{kind: Rule, name: x, rego: package x, file: x.rego}":                                                          false,
		"{kind: Workflow, name: x, start: {by: [operator/ci]}, stages: 5}":                                              false,
		"{kind: Tool, name: x, launch: {by: [operator/ci], commands: none}}":                                            false,
	} {
		if err := validate(t, s, []byte(text)); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
}
