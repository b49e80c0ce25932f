// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"remit"
)

// withPins are a Tool's keys with the digest of its pins in the place of their path: what was reviewed counts, not where it stands.
func (s *Set) withPins(fields map[string]remit.Value) map[string]remit.Value {
	name := fields["pins"].Text()
	if name == "" {
		return fields
	}
	out := maps.Clone(fields)
	out["pins"] = remit.StringValue(string(remit.DigestOf(s.Files[name])))
	return out
}

// toolServer compares what two revisions say of a tool's server.
func toolServer(o, n *remit.Tool) (what, text string) {
	var c comparison
	same := func(of string, equal bool) { c.note(equal, equal, "server: %s differs", of) }
	same("command", slices.Equal(o.Command, n.Command))
	same("files", o.Files == n.Files)
	same("environment", maps.Equal(o.Environment, n.Environment))
	same("url", o.URL == n.URL)
	same("ca", o.CA == n.CA)
	c.note(mountsWithin(n.Mounts, o.Mounts), mountsWithin(o.Mounts, n.Mounts), "server: mounts: %s, was %s", mountText(n.Mounts), mountText(o.Mounts))
	c.note(limitsWithin(n.Limits, o.Limits), limitsWithin(o.Limits, n.Limits), "server: limits differ")
	c.note(tiers[string(n.Tier())] >= tiers[string(o.Tier())], tiers[string(n.Tier())] <= tiers[string(o.Tier())], "server: sandbox: %s, was %s", n.Tier(), o.Tier())
	return c.what(), strings.Join(c.texts, "; ")
}

// mountsWithin reports whether all that a shows, most shows, too, and as writable.
func mountsWithin(a, most []remit.ToolMount) bool {
	return !slices.ContainsFunc(a, func(m remit.ToolMount) bool {
		return !slices.ContainsFunc(most, func(n remit.ToolMount) bool { return m.From == n.From && m.At == n.At && (n.Write || !m.Write) })
	})
}

func mountText(all []remit.ToolMount) string {
	var out []string
	for _, m := range all {
		text := m.From + " at " + m.At
		if m.Write {
			text += " (writable)"
		}
		out = append(out, text)
	}
	return or(strings.Join(out, ", "), "none")
}

func limitsWithin(a, most remit.ToolLimits) bool {
	return a.Memory <= most.Memory && a.CPU <= most.CPU && a.Processes <= most.Processes && a.Wall <= most.Wall && a.Output <= most.Output
}

// toolChange says what a changed Tool document means. Only a change of nothing but its server can be shown to narrow or to widen.
func toolChange(before, s *Set, name string, differ []string) (what, text string) {
	o, had := before.Tools[remit.Name("tool/"+name)]
	n, has := s.Tools[remit.Name("tool/"+name)]
	if !had || !has || !reflect.DeepEqual(differ, []string{"server"}) {
		return Changed, strings.Join(differ, ", ")
	}
	what, text = toolServer(&o, &n)
	return or(what, Changed), text
}
