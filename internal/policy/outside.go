// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"

	"remit"
)

// Outside reports whether a target is declared, and no stage of the workflow of that digest has it for anybody. A name that stands
// nowhere is a mistake, as models make them, and is not.
func (p *Plan) Outside(of remit.Digest, target string) bool {
	name, _, _ := strings.Cut(target, "/")
	if name == "" || !slices.Contains(p.cfg.Targets, name) {
		return false
	}
	for _, w := range p.workflows {
		if w.digest == of {
			return !w.has(name)
		}
	}
	return false
}

func (w *workflow) has(target string) bool {
	for _, s := range w.stages {
		for _, c := range s.all {
			if name, _, _ := strings.Cut(c.Target, "/"); name == target {
				return true
			}
		}
	}
	return false
}
