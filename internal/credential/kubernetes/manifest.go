// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	"sigs.k8s.io/yaml"

	"remit"
)

const maxManifest = 32 << 10

// parseManifest reads the approved manifest, as text or as an object. The lease can then create exactly that: the admission
// policy writes the text of what arrives and asks whether that text is granted. What the text does not hold, such as command
// and labels, is granted by value as if the arguments had named it.
func (s *scope) parseManifest(v remit.Value) error {
	text := v.Text()
	switch {
	case v.IsNull():
		return nil
	case v.Kind() == remit.Object:
		text = v.String()
	case v.Kind() != remit.String:
		return invalid("write the object as YAML or JSON", "manifest is a %s", v.Kind())
	}
	if len(text) > maxManifest {
		return invalid("", "manifest has more than %d bytes", maxManifest)
	}
	o, err := s.decodeManifest([]byte(text))
	if err != nil {
		return invalid("write one "+s.kindName+" as YAML or JSON", "manifest: %s", err)
	}
	pieces := piecesOf(o, s.kindName)
	//remit:guard S19 TestManifestRefusedAtPlan
	if key := unknownKey(pieces); key != "" {
		return invalid("leave it out, or grant without a manifest", "manifest: field %.80q of a new object cannot be held at the cluster", key)
	}
	if err := s.grantContents(o); err != nil {
		return err
	}
	s.manifest, s.text = o, spellPieces(pieces)
	return nil
}

// decodeManifest takes nothing that the kind does not have, and returns the object as the API server would write it.
func (s *scope) decodeManifest(text []byte) (map[string]any, error) {
	var into any
	switch s.kindName {
	case "Deployment":
		into = &appsv1.Deployment{}
	case "StatefulSet":
		into = &appsv1.StatefulSet{}
	case "DaemonSet":
		into = &appsv1.DaemonSet{}
	case "Job":
		into = &batchv1.Job{}
	default:
		into = &batchv1.CronJob{}
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		return nil, err
	}
	b, err := json.Marshal(into)
	if err != nil {
		return nil, err
	}
	var o map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&o); err != nil {
		return nil, err
	}
	meta := object(o, "metadata")
	switch {
	case o["kind"] != s.kindName || o["apiVersion"] != s.kind.group+"/v1":
		return nil, fmt.Errorf("it is of kind %v, %v", o["apiVersion"], o["kind"])
	case meta["name"] != s.name:
		return nil, fmt.Errorf("its name is %v, and the grant's %q", meta["name"], s.name)
	case meta["namespace"] != nil && meta["namespace"] != s.namespace:
		return nil, fmt.Errorf("its namespace is %v, and the grant's %q", meta["namespace"], s.namespace)
	}
	for k := range meta {
		if !slices.Contains([]string{"name", "namespace", "labels", "creationTimestamp"}, k) {
			return nil, fmt.Errorf("metadata.%s is not possible", k)
		}
	}
	for k := range object(templateOf(o), "metadata") {
		if k != "labels" && k != "creationTimestamp" {
			return nil, fmt.Errorf("metadata.%s of the pod template is not possible", k)
		}
	}
	delete(o, "status")
	return o, nil
}

// grantContents grants by value what the text does not hold, and refuses images that are not approved.
func (s *scope) grantContents(o map[string]any) error {
	spec := object(o, "spec")
	for _, key := range []string{"replicas", "parallelism"} {
		if n, ok := spec[key].(json.Number); ok && n != "1" {
			s.add("replicas=" + n.String())
		}
	}
	template := templateOf(o)
	labels := map[string]string{}
	for _, m := range []map[string]any{object(o, "metadata"), object(template, "metadata")} {
		for k, v := range object(m, "labels") {
			if v != s.name {
				labels[k+"="+fmt.Sprint(v)] = k
			}
		}
	}
	if len(labels) > maxLabels {
		return invalid("use the object's name as value", "manifest: %d labels have another value than the name, at most %d are possible", len(labels), maxLabels)
	}
	for _, l := range slices.Sorted(maps.Keys(labels)) {
		s.add("label=" + l)
	}
	for _, c := range containersOf(template) {
		//remit:guard S19 TestManifestRefusedAtPlan
		if image := fmt.Sprint(c["image"]); !slices.Contains(s.images, image) {
			return invalid("approve it under images, as REPOSITORY@sha256:HEX", "manifest: image %.200q is not one of the grant's", image)
		}
		lists := listsOf(c)
		for _, key := range []string{"command", "args", "env"} {
			if lists[key] != "" {
				s.add(key + "=" + lists[key])
			}
		}
	}
	return nil
}

func (s *scope) add(field string) {
	if !slices.Contains(s.fields, field) {
		s.fields = append(s.fields, field)
	}
}

// piece is a part of an object whose values stand in its text: see the variable "pieces" of the policy remit-agents, which is
// the same in CEL. Both must stay alike; TestManifest holds them together.
type piece struct {
	of     map[string]any
	keys   [][2]string // with their defaults
	others []string    // keys that have a rule or a piece of their own
}

var (
	outerKeys = [][2]string{{"minReadySeconds", "0"}, {"revisionHistoryLimit", "10"}, {"progressDeadlineSeconds", "600"}, {"serviceName", ""},
		{"podManagementPolicy", "OrderedReady"}, {"completions", "1"}, {"completionMode", "NonIndexed"}, {"backoffLimit", "6"},
		{"suspend", "false"}, {"ttlSecondsAfterFinished", ""}, {"activeDeadlineSeconds", ""}, {"podReplacementPolicy", "TerminatingOrFailed"},
		{"manualSelector", "false"}, {"schedule", ""}, {"timeZone", ""}, {"concurrencyPolicy", "Allow"}, {"startingDeadlineSeconds", ""},
		{"successfulJobsHistoryLimit", "3"}, {"failedJobsHistoryLimit", "1"}}
	outerOthers = []string{"replicas", "parallelism", "selector", "template", "jobTemplate", "strategy", "updateStrategy",
		"persistentVolumeClaimRetentionPolicy"}
	podKeys = [][2]string{{"restartPolicy", "Always"}, {"terminationGracePeriodSeconds", "30"}, {"automountServiceAccountToken", ""},
		{"enableServiceLinks", "true"}, {"activeDeadlineSeconds", ""}}
	podOthers    = []string{"containers", "initContainers", "securityContext", "dnsPolicy", "schedulerName", "serviceAccountName", "serviceAccount"}
	securityKeys = [][2]string{{"runAsNonRoot", ""}, {"runAsUser", ""}, {"runAsGroup", ""}, {"fsGroup", ""}, {"fsGroupChangePolicy", ""},
		{"allowPrivilegeEscalation", ""}, {"privileged", ""}, {"readOnlyRootFilesystem", ""}}
	typeKey         = [][2]string{{"type", ""}}
	quantityKeys    = [][2]string{{"cpu", ""}, {"memory", ""}, {"ephemeral-storage", ""}}
	containerKeys   = [][2]string{{"name", ""}, {"image", ""}, {"imagePullPolicy", "IfNotPresent"}, {"terminationMessagePolicy", "File"}}
	containerOthers = []string{"ports", "resources", "securityContext", "livenessProbe", "readinessProbe", "startupProbe", "terminationMessagePath",
		"command", "args", "env"}
	listKeys  = [][2]string{{"command", ""}, {"args", ""}, {"env", ""}, {"drop", ""}}
	probeKeys = [][2]string{{"initialDelaySeconds", "0"}, {"timeoutSeconds", "1"}, {"periodSeconds", "10"}, {"successThreshold", "1"},
		{"failureThreshold", "3"}}
	handlers = []struct {
		name string
		keys [][2]string
	}{{"httpGet", [][2]string{{"path", "/"}, {"port", ""}, {"scheme", "HTTP"}}}, {"tcpSocket", [][2]string{{"port", ""}}},
		{"grpc", [][2]string{{"port", ""}, {"service", ""}}}}
	probes   = []string{"livenessProbe", "readinessProbe", "startupProbe"}
	portKeys = [][2]string{{"name", ""}, {"containerPort", ""}, {"protocol", "TCP"}}
)

func piecesOf(o map[string]any, kindName string) [][]piece {
	rolling := [][2]string{{"maxUnavailable", "1"}, {"maxSurge", "0"}, {"partition", "0"}}
	if kindName == "Deployment" {
		rolling = [][2]string{{"maxUnavailable", "25%"}, {"maxSurge", "25%"}, {"partition", "0"}}
	}
	outer := []map[string]any{object(o, "spec")}
	if kindName == "CronJob" {
		outer = append(outer, object(object(outer[0], "jobTemplate"), "spec"))
	}
	var all [][]piece
	for _, s := range outer {
		a, b := object(s, "strategy"), object(s, "updateStrategy")
		strategy := [][2]string{{"type", "RollingUpdate"}}
		all = append(all, []piece{{s, outerKeys, outerOthers},
			{object(s, "persistentVolumeClaimRetentionPolicy"), [][2]string{{"whenDeleted", "Retain"}, {"whenScaled", "Retain"}}, nil},
			{a, strategy, []string{"rollingUpdate"}}, {b, strategy, []string{"rollingUpdate"}},
			{object(a, "rollingUpdate"), rolling, nil}, {object(b, "rollingUpdate"), rolling, nil}})
	}
	template := templateOf(o)
	spec := object(template, "spec")
	security := object(spec, "securityContext")
	main, _ := spec["containers"].([]any)
	all = append(all, []piece{{spec, podKeys, podOthers}, {security, securityKeys, []string{"seccompProfile"}}, {object(security, "seccompProfile"), typeKey, nil},
		{map[string]any{"containers": strconv.Itoa(len(main))}, [][2]string{{"containers", ""}}, nil}})
	for _, c := range containersOf(template) {
		all = append(all, piecesOfContainer(c))
	}
	return all
}

func piecesOfContainer(c map[string]any) []piece {
	lists := map[string]any{}
	for k, v := range listsOf(c) {
		lists[k] = v
	}
	resources, security := object(c, "resources"), object(c, "securityContext")
	out := []piece{{c, containerKeys, containerOthers}, {lists, listKeys, nil}, {resources, nil, []string{"limits", "requests"}},
		{object(resources, "limits"), quantityKeys, nil}, {object(resources, "requests"), quantityKeys, nil},
		{security, securityKeys, []string{"capabilities", "seccompProfile"}}, {object(security, "seccompProfile"), typeKey, nil}}
	for _, p := range probes {
		out = append(out, piece{object(c, p), probeKeys, []string{"httpGet", "tcpSocket", "grpc"}})
	}
	for _, h := range handlers {
		for _, p := range probes {
			out = append(out, piece{object(object(c, p), h.name), h.keys, nil})
		}
	}
	ports, _ := c["ports"].([]any)
	for _, p := range ports {
		if m, ok := p.(map[string]any); ok {
			out = append(out, piece{m, portKeys, nil})
		}
	}
	return out
}

// listsOf spells a container's lists.
func listsOf(c map[string]any) map[string]string {
	words := func(v any) string {
		var out []string
		list, _ := v.([]any)
		for _, w := range list {
			out = append(out, fmt.Sprint(w))
		}
		return spell(out)
	}
	var env []string
	list, _ := c["env"].([]any)
	for _, e := range list {
		m, _ := e.(map[string]any)
		value, _ := m["value"].(string)
		env = append(env, fmt.Sprint(m["name"]), value)
	}
	return map[string]string{"command": words(c["command"]), "args": words(c["args"]), "env": spell(env),
		"drop": words(object(object(c, "securityContext"), "capabilities")["drop"])}
}

// unknownKey is a key that neither the text nor a rule holds.
func unknownKey(all [][]piece) string {
	for _, g := range all {
		for _, p := range g {
			for _, k := range slices.Sorted(maps.Keys(p.of)) {
				if !slices.Contains(p.others, k) && !slices.ContainsFunc(p.keys, func(d [2]string) bool { return d[0] == k }) {
					return k
				}
			}
		}
	}
	return ""
}

func spellPieces(all [][]piece) string {
	var groups []string
	for _, g := range all {
		var pieces []string
		for _, p := range g {
			var b strings.Builder
			for _, d := range p.keys {
				v, ok := p.of[d[0]]
				if text := fmt.Sprint(v); ok && text != d[1] {
					b.WriteString(strconv.Itoa(utf8.RuneCountInString(text)) + ":" + text)
				} else {
					b.WriteString("-")
				}
			}
			pieces = append(pieces, b.String())
		}
		groups = append(groups, strings.Join(pieces, "/"))
	}
	return strings.Join(groups, "|")
}

// object is a member that is an object; an empty one that is not kept where it is absent.
func object(o map[string]any, name string) map[string]any {
	v, ok := o[name].(map[string]any)
	if !ok {
		return map[string]any{}
	}
	return v
}

// containersOf are a template's containers and then its init containers, as in the policy.
func containersOf(template map[string]any) []map[string]any {
	var out []map[string]any
	for _, key := range []string{"containers", "initContainers"} {
		list, _ := object(template, "spec")[key].([]any)
		for _, c := range list {
			if m, ok := c.(map[string]any); ok {
				out = append(out, m)
			}
		}
	}
	return out
}
