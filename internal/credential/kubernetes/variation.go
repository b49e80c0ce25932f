// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"strings"

	"remit"
)

// beside are changes to what stands beside the specification.
var beside = []variation{
	{"a pod annotation", false, func(o map[string]any) {
		field(field(templateOf(o), "metadata"), "annotations")[absent] = "x"
	}},
	{"an annotation", false, func(o map[string]any) { field(field(o, "metadata"), "annotations")[absent] = "x" }},
	{"a label", false, func(o map[string]any) { field(field(o, "metadata"), "labels")[absent] = "x" }},
	{"a finalizer", false, func(o map[string]any) { field(o, "metadata")["finalizers"] = []any{"remit.internal/" + absent} }},
	{"an owner", false, func(o map[string]any) {
		field(o, "metadata")["ownerReferences"] = []any{map[string]any{"apiVersion": "v1", "kind": "Pod", "name": absent, "uid": absent}}
	}},
}

// variations of the granted object. Each value is one that no grant holds: the words are the prober's own.
func (p *prober) variations(update bool) []variation {
	approved := p.scope.images[0]
	repository, _, _ := strings.Cut(approved, "@")
	other := repository + "@" + string(remit.DigestOf([]byte(absent+approved)))
	set := func(name string, value any) func(map[string]any) {
		return func(o map[string]any) { container(o)[name] = value }
	}
	pod := func(name string, value any) func(map[string]any) {
		return func(o map[string]any) { field(templateOf(o), "spec")[name] = value }
	}
	exec := map[string]any{"exec": map[string]any{"command": []any{absent}}}
	out := []variation{
		{"the approved image", true, set("image", approved)},
		{"another digest", false, set("image", other)},
		{"the image by its tag", false, set("image", repository+":latest")},
		{"another image in an init container", false, pod("initContainers", []any{map[string]any{"name": absent, "image": other}})},
		{"a command", false, set("command", []any{absent})},
		{"arguments", false, set("args", []any{absent})},
		{"environment", false, set("env", []any{map[string]any{"name": "REMIT_PROBE", "value": absent}})},
		{"a secret as environment", false, set("envFrom", []any{map[string]any{"secretRef": map[string]any{"name": absent}}})},
		{"a lifecycle hook", false, set("lifecycle", map[string]any{"postStart": exec})},
		{"an exec probe", false, set("livenessProbe", exec)},
		{"privilege escalation", false, set("securityContext", map[string]any{"allowPrivilegeEscalation": true})},
		{"a capability", false, set("securityContext", map[string]any{"capabilities": map[string]any{"add": []any{"SYS_ADMIN"}}})},
		{"another service account", false, func(o map[string]any) {
			spec := field(templateOf(o), "spec")
			spec["serviceAccountName"], spec["serviceAccount"] = absent, absent
		}},
		{"a host path volume", false, pod("volumes", []any{map[string]any{"name": absent, "hostPath": map[string]any{"path": "/"}}})},
		{"a secret volume", false, pod("volumes", []any{map[string]any{"name": absent, "secret": map[string]any{"secretName": absent}}})},
		{"the host's network", false, pod("hostNetwork", true)},
		{"the host's processes", false, pod("hostPID", true)},
		{"a chosen node", false, pod("nodeName", absent)},
		{"tolerations", false, pod("tolerations", []any{map[string]any{"operator": "Exists"}})},
	}
	out = append(out, beside...)
	if k := p.scope.kindName; k == "Deployment" || k == "StatefulSet" {
		out = append(out, variation{"4747 replicas", false, func(o map[string]any) { field(o, "spec")["replicas"] = 4747 }})
	}
	if !update && p.scope.manifest != nil {
		out = append(out, variation{"another port", false, set("ports", []any{map[string]any{"containerPort": 4747}})},
			variation{"another claim on resources", false, set("resources", map[string]any{"requests": map[string]any{"cpu": "47m"}})},
			variation{"another probe", false, set("startupProbe", map[string]any{"tcpSocket": map[string]any{"port": 4747}})},
			variation{"other security settings", false, set("securityContext", map[string]any{"runAsUser": 4747})},
			variation{"another container with an approved image", false, func(o map[string]any) {
				spec := field(templateOf(o), "spec")
				spec["initContainers"] = append(list(spec["initContainers"]), map[string]any{"name": absent, "image": approved})
			}})
	}
	if update {
		out = append(out, variation{"one more container", false, func(o map[string]any) {
			spec := field(templateOf(o), "spec")
			spec["containers"] = append(list(spec["containers"]), map[string]any{"name": absent, "image": approved})
		}})
	}
	return out
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}
