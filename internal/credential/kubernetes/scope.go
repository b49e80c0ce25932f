// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	rbacv1 "k8s.io/api/rbac/v1"

	"remit"
)

// Prefix is the API group of the virtual RBAC resources, and the prefix of labels.
const Prefix = "remit.internal"

// The actions.
const (
	actionApply  = "kubernetes.apply"
	actionGet    = "kubernetes.get"
	actionList   = "kubernetes.list"
	actionDelete = "kubernetes.delete"
)

// kind is a kind that a lease can be about.
type kind struct {
	group, resource string
	write           bool // whether apply and delete are possible; the admission policies know these kinds
}

func kinds(name string) (kind, bool) {
	k, ok := map[string]kind{
		"Deployment": {"apps", "deployments", true}, "StatefulSet": {"apps", "statefulsets", true},
		"DaemonSet": {"apps", "daemonsets", true}, "Job": {"batch", "jobs", true}, "CronJob": {"batch", "cronjobs", true},
		"ReplicaSet": {"apps", "replicasets", false}, "Pod": {"", "pods", false}, "Service": {"", "services", false},
	}[name]
	return k, ok
}

// scope is a lease's scope, parsed: whatever is in it, the target holds.
type scope struct {
	action    string
	namespace string
	kindName  string
	kind      kind
	name      string            // empty only for list
	images    []string          // REPOSITORY@sha256:HEX; apply only
	fields    []string          // further contents granted, as the admission policy spells them; apply only
	granted   map[string]string // the same for people: argument -> value
	existing  bool              // only an object that stands; apply only
	manifest  map[string]any    // the approved manifest, nil if there is none; apply only
	text      string            // its text, as the admission policy spells it
}

var (
	labelPattern     = expr(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	subdomainPattern = expr(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	labelKeyPattern  = expr(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelValPattern  = expr(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
	envNamePattern   = expr(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

const (
	maxImages = 32
	maxWords  = 256 // of command, args or env
	maxLabels = 2   // the API server bounds what an admission expression may cost; two checks fit
)

func invalid(hint, format string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: "kubernetes: " + fmt.Sprintf(format, args...), Hint: hint}
}

// parseScope refuses every action, kind and argument that the target cannot hold to: an argument that is not understood
// would be one that is not enforced.
func parseScope(action string, args remit.Args) (scope, error) {
	s := scope{action: action, granted: map[string]string{}}
	known := []string{"namespace", "kind"}
	switch action {
	case actionApply:
		known = append(known, "name", "image", "images", "command", "args", "env", "replicas", "labels", "manifest", "existing")
	case actionGet, actionDelete:
		known = append(known, "name")
	case actionList:
	default:
		return s, invalid("use kubernetes.apply, kubernetes.get, kubernetes.list or kubernetes.delete", "no action %.60q", action)
	}
	for _, k := range slices.Sorted(maps.Keys(args)) {
		//remit:guard S17 TestPlanRefusesWhatTheClusterCannotHold
		if !slices.Contains(known, k) && !args[k].IsNull() {
			return s, invalid("name only: "+strings.Join(known, ", "), "argument %.60q of %s cannot be held at the cluster", k, action)
		}
	}
	if err := s.object(args); err != nil {
		return s, err
	}
	if action != actionApply {
		return s, nil
	}
	if err := s.parseImages(args); err != nil {
		return s, err
	}
	if err := s.parseFields(args); err != nil {
		return s, err
	}
	return s, s.parseNew(args)
}

// parseNew reads what a new object may be: anything harmless, the approved manifest, or none at all.
func (s *scope) parseNew(args remit.Args) error {
	if v := args["existing"]; !v.IsNull() {
		if v.Kind() != remit.Bool {
			return invalid("write true or false", "existing is a %s", v.Kind())
		}
		s.existing = v.String() == "true"
	}
	if err := s.parseManifest(args["manifest"]); err != nil {
		return err
	}
	switch {
	case s.existing && s.manifest != nil:
		return invalid("name one of the two", "existing and manifest exclude each other")
	case s.manifest != nil:
		s.add("create=" + s.text)
	case !s.existing:
		s.add("create=any")
	}
	return nil
}

func (s *scope) object(args remit.Args) error {
	var ok bool
	if s.namespace = args["namespace"].Text(); args["namespace"].Kind() != remit.String || !labelPattern.MatchString(s.namespace) {
		return invalid("name one namespace", "namespace %.80q is not one", s.namespace)
	}
	if s.kindName = args["kind"].Text(); args["kind"].Kind() != remit.String {
		return invalid("name a kind such as Deployment", "kind is missing")
	}
	//remit:guard S17 TestPlanRefusesWhatTheClusterCannotHold
	if s.kind, ok = kinds(s.kindName); !ok || (!s.kind.write && (s.action == actionApply || s.action == actionDelete)) {
		return invalid("apply and delete know Deployment, StatefulSet, DaemonSet, Job and CronJob; get and list also ReplicaSet, Pod and Service",
			"%s of kind %.60q is not possible", s.action, s.kindName)
	}
	if s.action == actionList {
		return nil
	}
	//remit:guard S17 TestPlanRefusesWhatTheClusterCannotHold
	if s.name = args["name"].Text(); args["name"].Kind() != remit.String || !subdomainPattern.MatchString(s.name) {
		return invalid("name one object", "name %.80q is not one", s.name)
	}
	return nil
}

func (s *scope) parseImages(args remit.Args) error {
	values := args["images"].Elements()
	if k := args["images"].Kind(); k != remit.List && k != remit.Null {
		return invalid("write a list", "images is not a list")
	}
	if v := args["image"]; !v.IsNull() {
		values = append([]remit.Value{v}, values...)
	}
	//remit:guard S19 TestPlanRefusesWhatTheClusterCannotHold
	if len(values) == 0 || len(values) > maxImages {
		return invalid("name image or images", "%d images: 1 to %d are possible", len(values), maxImages)
	}
	for _, v := range values {
		img, err := remit.ParseImage(v.Text())
		//remit:guard S19 TestPlanRefusesWhatTheClusterCannotHold
		if err != nil || v.Kind() != remit.String || img.Digest == "" {
			return invalid("write REPOSITORY@sha256:HEX", "image %.200q has no digest", v.Text())
		}
		if !slices.Contains(s.images, img.String()) {
			s.images = append(s.images, img.String())
		}
	}
	return nil
}

// parseFields reads the contents that are granted by value. Their spelling is the admission policy's, which builds the same
// text from what arrives at the cluster; each word is preceded by its length, so that no two lists are spelled alike.
func (s *scope) parseFields(args remit.Args) error {
	for _, name := range []string{"command", "args"} {
		v := args[name]
		if v.IsNull() {
			continue
		}
		words, err := texts(name, v)
		if err != nil {
			return err
		}
		s.grant(name, name+"="+spell(words), v)
	}
	if err := s.parseEnv(args["env"]); err != nil {
		return err
	}
	if v := args["replicas"]; !v.IsNull() {
		n, err := strconv.Atoi(v.Text())
		if err != nil || v.Kind() != remit.Number || n < 0 || n > 10000 {
			return invalid("write a number up to 10000", "replicas %.40q is not one", v.Text())
		}
		s.grant("replicas", "replicas="+strconv.Itoa(n), v)
	}
	return s.parseLabels(args["labels"])
}

func (s *scope) grant(arg, field string, v remit.Value) {
	s.fields = append(s.fields, field)
	s.granted[arg] = v.String()
}

// parseEnv takes an object of names and plain values, granted as a whole, in the order of their names.
func (s *scope) parseEnv(v remit.Value) error {
	if v.IsNull() {
		return nil
	}
	if v.Kind() != remit.Object || len(v.Fields()) > maxWords {
		return invalid("write {NAME: value}", "env is not an object of at most %d names", maxWords)
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(v.Fields())) {
		value := v.Field(name)
		//remit:guard S19 TestPlanRefusesWhatTheClusterCannotHold
		if !envNamePattern.MatchString(name) || value.Kind() != remit.String {
			return invalid("write {NAME: value} with text values", "env %.80q is not a name with a text", name)
		}
		words = append(words, name, value.Text())
	}
	s.grant("env", "env="+spell(words), v)
	return nil
}

func (s *scope) parseLabels(v remit.Value) error {
	if v.IsNull() {
		return nil
	}
	if v.Kind() != remit.Object || len(v.Fields()) > maxLabels {
		return invalid("write {key: value}", "labels is not an object of at most %d keys", maxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(v.Fields())) {
		value := v.Field(key)
		//remit:guard S19 TestPlanRefusesWhatTheClusterCannotHold
		if !labelKeyPattern.MatchString(key) || value.Kind() != remit.String || !labelValPattern.MatchString(value.Text()) {
			return invalid("write {key: value}", "labels: %.80q is not a label", key)
		}
		s.fields = append(s.fields, "label="+key+"="+value.Text())
	}
	s.granted["labels"] = v.String()
	return nil
}

func texts(name string, v remit.Value) ([]string, error) {
	if v.Kind() != remit.List || len(v.Elements()) == 0 || len(v.Elements()) > maxWords {
		return nil, invalid("write a list of texts", "%s is not a list of 1 to %d texts", name, maxWords)
	}
	var out []string
	for _, e := range v.Elements() {
		if e.Kind() != remit.String {
			return nil, invalid("write a list of texts", "%s holds a %s", name, e.Kind())
		}
		out = append(out, e.Text())
	}
	return out, nil
}

// spell writes each word as its length in characters, a colon and the word; CEL's size() counts characters, too.
func spell(words []string) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString(strconv.Itoa(utf8.RuneCountInString(w)) + ":" + w)
	}
	return b.String()
}

// objectName is the name of the virtual resource "objects": RESOURCE.GROUP/NAME.
func (s *scope) objectName() string { return s.kind.resource + "." + s.kind.group + "/" + s.name }

// rules is the authority of a lease, all of it. create cannot be bound to a name by RBAC; the admission policy does that
// through the virtual resource "objects".
func (s *scope) rules() []rbacv1.PolicyRule {
	on := func(names []string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{s.kind.group}, Resources: []string{s.kind.resource}, ResourceNames: names, Verbs: verbs}
	}
	virtual := func(resource, verb string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{Prefix}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{verb}}
	}
	name := []string{s.name}
	switch s.action {
	case actionGet:
		return []rbacv1.PolicyRule{on(name, "get", "list", "watch")}
	case actionList:
		return []rbacv1.PolicyRule{on(nil, "get", "list", "watch")}
	case actionDelete:
		return []rbacv1.PolicyRule{on(name, "get", "list", "watch", "delete"), virtual("objects", "delete", s.objectName())}
	}
	rules := []rbacv1.PolicyRule{
		on(name, "get", "list", "watch", "update", "patch"), virtual("objects", "apply", s.objectName()), virtual("images", "deploy", s.images...),
	}
	if !s.existing {
		rules = append(rules, on(nil, "create"))
	}
	if len(s.fields) > 0 {
		rules = append(rules, virtual("fields", "apply", s.fields...))
	}
	return rules
}

// bounds says in words what the cluster holds the lease to, and what it does not.
func (s *scope) bounds() (bounds, notBounded []string) {
	bounds = []string{"namespace " + s.namespace, "kind " + s.kindName}
	if s.name != "" {
		bounds = append(bounds, "name "+s.name)
	}
	notBounded = []string{"reading the API's discovery and OpenAPI documents"}
	switch s.action {
	case actionGet, actionList:
		return append(bounds, "read only"), notBounded
	case actionDelete:
		return append(bounds, "read and delete only"), append(notBounded, "what deleting it cascades to")
	}
	bounds = append(bounds, "images "+strings.Join(s.images, ", "), "on update nothing but images changes, unless granted")
	notBounded = append(notBounded, "what the approved image does when it runs")
	if len(s.images) > 1 {
		notBounded = append(notBounded, "on update: which of the approved images stands in which container")
	}
	switch {
	case s.existing:
		bounds = append(bounds, "only an object that stands")
	case s.manifest != nil:
		bounds = append(bounds, "on create exactly the approved manifest, "+string(remit.DigestOf([]byte(s.text))))
		notBounded = append(notBounded, "on create: labels whose value is the object's own name")
	default:
		bounds = append(bounds, "on create only harmless fields, unless granted")
		notBounded = append(notBounded,
			"on create: ports, resource requests, HTTP, TCP and gRPC probes, rollout strategy, restrictive security settings")
		if len(s.images) > 1 {
			notBounded = append(notBounded, "on create: which of the approved images stands in which container")
		}
		if s.kindName == "CronJob" || s.kindName == "Job" {
			notBounded = append(notBounded, "on create: schedule, deadlines and retries")
		}
	}
	for _, arg := range slices.Sorted(maps.Keys(s.granted)) {
		bounds = append(bounds, arg+" "+s.granted[arg])
	}
	return bounds, notBounded
}

// allows answers for the webhook authorizer as RBAC would for rules: an absent list of names means any name.
func allows(rules []rbacv1.PolicyRule, verb, group, resource, subresource, name string) bool {
	if subresource != "" {
		resource += "/" + subresource
	}
	return slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.Verbs, verb) && slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) &&
			(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, name))
	})
}
