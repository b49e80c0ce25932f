// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"remit"
)

const dryRun = "dryRun=All"

// object is the path of an object of the scope's kind in the scope's namespace; no name: of their collection.
func (p *prober) object(name string) string { return p.pathIn(p.scope.namespace, name) }

func (p *prober) pathIn(namespace, name string) string {
	path := "/apis/" + p.scope.kind.group + "/v1"
	if p.scope.kind.group == "" {
		path = "/api/v1"
	}
	path += "/namespaces/" + namespace + "/" + p.scope.kind.resource
	if name != "" {
		path += "/" + name
	}
	return path
}

// attempts are all requests of a verification. old is the object that stands at the cluster, nil if there is none.
func (p *prober) attempts(old map[string]any) []attempt {
	out := append([]attempt{p.read()}, p.elsewhere()...)
	switch p.scope.action {
	case actionApply:
		out = append(out, p.changes(old)...)
		out = append(out, p.remove(false))
	case actionDelete:
		out = append(out, p.remove(true))
		out = append(out, p.writes()...)
	default:
		out = append(out, p.writes()...)
		out = append(out, p.remove(false))
	}
	return append(append(out, p.subresources()...), p.powers()...)
}

func (p *prober) remove(granted bool) attempt {
	name := p.scope.name
	if name == "" {
		name = absent
	}
	return attempt{act: "delete " + p.scope.kindName + " " + name, granted: granted, how: howDryRun, method: http.MethodDelete,
		path: p.object(name) + "?" + dryRun}
}

// elsewhere are other names, namespaces and kinds.
func (p *prober) elsewhere() []attempt {
	s := p.scope
	other := "default"
	if s.namespace == other {
		other = "kube-public"
	}
	core := "/api/v1/namespaces/" + s.namespace
	read := func(what, path string) attempt {
		return attempt{act: "read " + what, how: howAbsent, method: http.MethodGet, path: path}
	}
	create := func(act, path string, body any) attempt {
		return attempt{act: act, how: howDryRun, method: http.MethodPost, path: path + "?" + dryRun, body: body}
	}
	meta := map[string]any{"name": absent}
	out := []attempt{
		read("a secret", core+"/secrets/"+absent), read("a config map", core+"/configmaps/"+absent), read("a node", "/api/v1/nodes/"+absent),
		read(s.kindName+" in another namespace", p.pathIn(other, absent)),
		read("secrets of every namespace", "/api/v1/secrets?limit=1&fieldSelector=metadata.name%3D"+absent),
		create("create a secret", core+"/secrets", map[string]any{"metadata": meta}),
		create("create a config map", core+"/configmaps", map[string]any{"metadata": meta}),
		create("create a pod", core+"/pods", map[string]any{"metadata": meta, "spec": map[string]any{
			"containers": []any{map[string]any{"name": "main", "image": "registry.invalid/probe"}}}}),
		{act: "delete all of kind " + s.kindName, how: howDryRun, method: http.MethodDelete,
			path: p.object("") + "?" + dryRun + "&fieldSelector=metadata.name%3D" + absent},
		{act: "delete another " + s.kindName, how: howDryRun, method: http.MethodDelete, path: p.object(absent) + "?" + dryRun},
	}
	if s.kind.write {
		out = append(out, create("create another "+s.kindName, p.object(""), p.fresh(absent)),
			create("create "+s.kindName+" in another namespace", p.pathIn(other, ""), p.fresh(s.name)))
	}
	if s.action != actionList {
		out = append(out, read("another "+s.kindName, p.object(absent)), read("all of kind "+s.kindName, p.object("")+"?limit=1"))
	}
	return out
}

// subresources of the object, and of pods.
func (p *prober) subresources() []attempt {
	name := p.scope.name
	if name == "" {
		name = absent
	}
	patch := func(act, path string, body any) attempt {
		return attempt{act: act, how: howDryRun, method: http.MethodPatch, path: path + "?" + dryRun, body: body, patch: true}
	}
	out := []attempt{patch("write the status", p.object(name)+"/status", map[string]any{"status": map[string]any{}})}
	if r := p.scope.kind.resource; r == "deployments" || r == "statefulsets" || r == "replicasets" {
		out = append(out, patch("scale", p.object(name)+"/scale", map[string]any{"spec": map[string]any{"replicas": 47}}))
	}
	pod := "/api/v1/namespaces/" + p.scope.namespace + "/pods/" + absent
	for _, sub := range []string{"exec", "attach", "portforward"} {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			out = append(out, attempt{act: sub + " into a pod (" + method + ")", how: howAbsent, method: method, path: pod + "/" + sub + "?command=true&stdout=true&ports=1"})
		}
	}
	return append(out,
		attempt{act: "proxy to a pod", how: howAbsent, method: http.MethodGet, path: pod + "/proxy"},
		patch("add an ephemeral container", pod+"/ephemeralcontainers", map[string]any{"spec": map[string]any{}}),
		attempt{act: "evict a pod", how: howDryRun, method: http.MethodPost, path: pod + "/eviction?" + dryRun,
			body: map[string]any{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"name": absent}}},
		attempt{act: "bind a pod to a node", how: howDryRun, method: http.MethodPost, path: pod + "/binding?" + dryRun,
			body: map[string]any{"metadata": map[string]any{"name": absent}, "target": map[string]any{"kind": "Node", "name": absent}}})
}

// powers are ways to more authority.
func (p *prober) powers() []attempt {
	rbac := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + p.scope.namespace
	policies := "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
	meta := map[string]any{"name": absent}
	post := func(act, path string, body any) attempt {
		return attempt{act: act, how: howDryRun, method: http.MethodPost, path: path + "?" + dryRun, body: body}
	}
	review := map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": map[string]any{
		"resourceAttributes": map[string]any{"namespace": p.scope.namespace, "verb": "*", "group": "*", "resource": "*"}}}
	return []attempt{
		post("escalate: create a role", rbac+"/roles", map[string]any{"metadata": meta, "rules": []any{
			map[string]any{"apiGroups": []any{""}, "resources": []any{"secrets"}, "verbs": []any{"get"}}}}),
		post("escalate: bind cluster-admin", rbac+"/rolebindings", map[string]any{"metadata": meta,
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
			"subjects": []any{map[string]any{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": absent}}}),
		{act: "make a token of another account", how: howAbsent, method: http.MethodPost,
			path: "/api/v1/namespaces/" + p.scope.namespace + "/serviceaccounts/" + absent + "/token?" + dryRun, body: map[string]any{"spec": map[string]any{}}},
		{act: "make a token of another lease", how: howAbsent, method: http.MethodPost,
			path: "/api/v1/namespaces/" + LeaseNamespace + "/serviceaccounts/" + absent + "/token?" + dryRun, body: map[string]any{"spec": map[string]any{}}},
		{act: "impersonate an administrator", how: howRead, method: http.MethodGet, path: "/api/v1/namespaces/" + p.scope.namespace + "/pods/" + absent,
			as: "system:admin"},
		{act: "delete the admission policy", how: howDryRun, method: http.MethodDelete, path: policies + "/remit-agents?" + dryRun},
		{act: "delete the policy's binding", how: howDryRun, method: http.MethodDelete,
			path: strings.TrimSuffix(policies, "ies") + "ybindings/remit-agents?" + dryRun},
		{act: "everything in the namespace", how: howReview, method: http.MethodPost, path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
			body: review, review: true},
	}
}

// writes are what a lease that reads or deletes may not do to its own object.
func (p *prober) writes() []attempt {
	if !p.scope.kind.write || p.scope.name == "" {
		return nil
	}
	return []attempt{
		{act: "create " + p.scope.kindName + " " + p.scope.name, how: howDryRun, method: http.MethodPost, path: p.object("") + "?" + dryRun, body: p.fresh(p.scope.name)},
		{act: "change " + p.scope.kindName + " " + p.scope.name, how: howDryRun, method: http.MethodPatch, path: p.object(p.scope.name) + "?" + dryRun,
			body: map[string]any{"metadata": map[string]any{"labels": map[string]any{"remit-probe": "x"}}}, patch: true},
	}
}

// fresh is the approved manifest, or the least object of the scope's kind: one container with an approved image.
func (p *prober) fresh(name string) map[string]any {
	if p.scope.manifest != nil && name == p.scope.name {
		return p.scope.manifest
	}
	image := "registry.invalid/probe@" + string(remit.DigestOf([]byte(absent)))
	if len(p.scope.images) > 0 {
		image = p.scope.images[0]
	}
	labels := map[string]any{"app": name}
	pod := map[string]any{"containers": []any{map[string]any{"name": "main", "image": image}}}
	template := map[string]any{"metadata": map[string]any{"labels": labels}, "spec": pod}
	spec := map[string]any{"template": template, "selector": map[string]any{"matchLabels": labels}}
	switch p.scope.kindName {
	case "Job":
		pod["restartPolicy"] = "Never"
		delete(spec, "selector")
	case "CronJob":
		pod["restartPolicy"] = "Never"
		spec = map[string]any{"schedule": "0 0 1 1 *", "jobTemplate": map[string]any{"spec": map[string]any{"template": template}}}
	}
	return map[string]any{"apiVersion": p.scope.kind.group + "/v1", "kind": p.scope.kindName, "metadata": map[string]any{"name": name}, "spec": spec}
}

// templateOf is the pod template of a workload.
func templateOf(o map[string]any) map[string]any {
	spec := field(o, "spec")
	if job, ok := spec["jobTemplate"].(map[string]any); ok {
		spec = field(job, "spec")
	}
	return field(spec, "template")
}

// field is a member that is an object; it is made where it is absent.
func field(o map[string]any, name string) map[string]any {
	v, ok := o[name].(map[string]any)
	if !ok {
		v = map[string]any{}
		o[name] = v
	}
	return v
}

// container is the first container of a workload.
func container(o map[string]any) map[string]any {
	list, _ := field(templateOf(o), "spec")["containers"].([]any)
	if len(list) > 0 {
		if c, ok := list[0].(map[string]any); ok {
			return c
		}
	}
	return map[string]any{} // nothing that is sent: the trial shows nothing then
}

// variation is one change to the granted object.
type variation struct {
	act     string
	granted bool
	do      func(o map[string]any)
}

// changes are writes to the granted object: as it is granted, and with everything that is not. They are dry runs of an update
// where the object stands, of a create where it does not.
func (p *prober) changes(old map[string]any) []attempt {
	method, path, base, verb := http.MethodPost, p.object(""), p.fresh(p.scope.name), "create"
	if old != nil {
		method, path, base, verb = http.MethodPut, p.object(p.scope.name), old, "update"
		delete(field(base, "metadata"), "resourceVersion") // somebody may change it meanwhile
		delete(field(base, "metadata"), "managedFields")
		delete(base, "status")
	}
	var out []attempt
	for _, v := range p.variations(old != nil) {
		o := copyOf(base)
		v.do(o)
		granted := v.granted && (old != nil || !p.scope.existing)
		out = append(out, attempt{act: verb + " with " + v.act, granted: granted, how: howDryRun, method: method, path: path + "?" + dryRun, body: o})
	}
	return out
}

func copyOf(o map[string]any) map[string]any {
	var out map[string]any
	if b, err := json.Marshal(o); err == nil { // it came from JSON
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		_ = d.Decode(&out)
	}
	return out
}
