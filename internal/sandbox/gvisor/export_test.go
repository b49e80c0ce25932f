// SPDX-License-Identifier: Apache-2.0

package gvisor

// Flag gives gVisor one more flag in the sandboxes that come.
func (d *Driver) Flag(f string) { d.flags = append(d.flags, f) }

// ProblemOf is problem.
var ProblemOf = problem
