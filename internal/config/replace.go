// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"
	"maps"

	"go.yaml.in/yaml/v3"

	"remit"
)

// Replace returns the set's files with one workflow as text says it. Other documents of a file in which it stood are written anew,
// without their comments. It is for judging by, not for keeping.
func (s *Set) Replace(workflow string, text []byte) (map[string][]byte, error) {
	out := maps.Clone(s.Files)
	if at, ok := s.docs["Workflow/"+workflow]; ok {
		rest, err := without(at.file, s.Files[at.file], workflow)
		if err != nil {
			return nil, err
		}
		if out[at.file] = rest; len(rest) == 0 {
			delete(out, at.file)
		}
	}
	name := workflow + ".yaml"
	for out[name] != nil {
		name = "new-" + name
	}
	out[name] = text
	return out, nil
}

func without(file string, b []byte, workflow string) ([]byte, error) {
	p := &problems{}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	any := false
	for _, n := range documents(file, b, p) {
		if valueOf(n, "kind") == "Workflow" && valueOf(n, "name") == workflow {
			continue
		}
		any = true
		if err := enc.Encode(n); err != nil {
			return nil, fmt.Errorf("write %s anew: %w", file, err)
		}
	}
	if err := p.err(); err != nil || !any {
		return nil, err
	}
	return out.Bytes(), enc.Close()
}

// Wider says in what a workflow may be wider than another; empty: it can be shown that it is not.
func Wider(w, than *remit.Workflow) (out []remit.PolicyChange) {
	now, before := &Set{Workflows: []remit.Workflow{*w}}, &Set{Workflows: []remit.Workflow{*than}}
	for _, c := range now.Diff(before) {
		if c.What != Narrowed && c.What != Removed {
			out = append(out, c)
		}
	}
	return out
}
