// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"remit"
)

const (
	maxAudit  = 8 << 20 // bytes of one batch; kube-apiserver sends at most 10 MiB, 400 events by default
	maxEvents = 4096    // as many as the store takes in one change
	maxText   = 1024    // bytes of one detail
)

// eventList is audit.k8s.io/v1 EventList, the members that are read.
type eventList struct {
	Kind       string  `json:"kind"`
	APIVersion string  `json:"apiVersion"`
	Items      []event `json:"items"`
}

type event struct {
	AuditID string `json:"auditID"`
	Stage   string `json:"stage"`
	URI     string `json:"requestURI"`
	Verb    string `json:"verb"`
	User    struct {
		Name   string              `json:"username"`
		Groups []string            `json:"groups"`
		Extra  map[string][]string `json:"extra"`
	} `json:"user"`
	Impersonated *struct {
		Name string `json:"username"`
	} `json:"impersonatedUser"`
	SourceIPs []string `json:"sourceIPs"`
	Agent     string   `json:"userAgent"`
	Object    *struct {
		Resource    string `json:"resource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
		Group       string `json:"apiGroup"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	Status *struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	At          time.Time         `json:"stageTimestamp"`
	Annotations map[string]string `json:"annotations"`
}

// audit takes a batch. It answers 200 when everything in it is durable or not ours, else 503, so that the batch comes again;
// ids of recorded events are remembered, and what comes twice counts once.
func (g *Gateway) audit(w http.ResponseWriter, r *http.Request) {
	var list eventList
	if !read(w, r, maxAudit, &list) {
		return
	}
	//remit:guard S36 TestBadBodies
	if list.Kind != "EventList" || list.APIVersion != "audit.k8s.io/v1" || len(list.Items) > maxEvents {
		http.Error(w, "send an EventList of audit.k8s.io/v1", http.StatusBadRequest)
		return
	}
	g.heard.Store(g.cfg.Now().UnixNano())
	var acts []remit.Outcome
	var ids []string
	for i := range list.Items {
		e := &list.Items[i]
		//remit:guard S36 TestAuditJoinsActsToLeases
		if e.AuditID == "" || g.seen.has(e.AuditID) || slices.Contains(ids, e.AuditID) {
			continue
		}
		if act, ok := g.act(e); ok {
			acts, ids = append(acts, act), append(ids, e.AuditID)
		}
	}
	if len(acts) > 0 {
		//remit:guard S36 TestAuditJoinsActsToLeases
		if err := g.cfg.Acts.Executed(r.Context(), acts); err != nil {
			http.Error(w, "not recorded: send again", http.StatusServiceUnavailable)
			return
		}
		g.seen.add(ids)
	}
	w.WriteHeader(http.StatusOK)
}

// act turns an event into an outcome; ok is false for events that are not about a lease's holder: other users, requests with
// a rejected credential (which are no evidence against anybody, S36), discovery.
func (g *Gateway) act(e *event) (act remit.Outcome, ok bool) {
	if e.Stage != "ResponseComplete" && e.Stage != "Panic" {
		return act, false
	}
	issued := e.Annotations["authentication.kubernetes.io/issued-credential-id"]
	account, isAccount := strings.CutPrefix(e.User.Name, accountPrefix)
	minted := issued != "" && e.Object != nil && e.Object.Namespace == leaseNamespace
	//remit:guard S36 TestAuditJoinsActsToLeases
	if !isAccount && !slices.Contains(e.User.Groups, groupAgents) && !minted {
		return act, false
	}
	path, _, _ := strings.Cut(e.URI, "?")
	if e.Object == nil && discovery(path) {
		return act, false
	}
	act = remit.Outcome{At: e.At, Target: g.cfg.Target, Verb: cut(e.Verb), Source: "kubernetes-audit", SourceID: cut(e.AuditID),
		Resource: cut(path), Detail: e.detail()}
	if e.Object != nil {
		act.Resource = e.resource()
	}
	if e.Status != nil {
		act.Status = e.Status.Code
	}
	act.Allowed = e.Annotations["authorization.k8s.io/decision"] == "allow" && act.Status != http.StatusForbidden && act.Status != http.StatusUnauthorized
	if minted {
		account, isAccount = e.Object.Name, true
		act.Credential = cut(issued)
	} else if c := e.User.Extra[credentialKey]; len(c) == 1 {
		act.Credential = cut(c[0])
	}
	act.Lease = g.lease(act.Credential, account, isAccount)
	l, _ := g.cfg.Leases.ByID(act.Lease)
	act.Effective = !minted && e.does(l.Action)
	return act, true
}

// does reports whether a request is what an action is for: of its verbs, on the object itself, and neither a dry run nor as
// somebody else. A lease also lets its holder look, and our own mint shows under its account.
func (e *event) does(action string) bool {
	path, query, _ := strings.Cut(e.URI, "?")
	q, err := url.ParseQuery(query)
	//remit:guard S9 TestEffectiveActs
	if err != nil || path == "" || e.Stage != "ResponseComplete" || e.Status == nil || q.Has("dryRun") || e.Impersonated != nil || e.Object == nil || e.Object.Subresource != "" {
		return false
	}
	return slices.Contains(map[string][]string{
		"kubernetes.apply": {"create", "update", "patch"}, "kubernetes.delete": {"delete"},
		"kubernetes.get": {"get", "list", "watch"}, "kubernetes.list": {"get", "list", "watch"},
	}[action], e.Verb)
}

// lease joins by credential id, and by the account's name where the id is not known (yet). No lease is an answer, too: an
// identity of ours that acts without a lease is a finding.
func (g *Gateway) lease(credential, account string, isAccount bool) remit.LeaseID {
	if l, ok := g.cfg.Leases.ByCredential(credential); ok && credential != "" && l.Target == g.cfg.Target {
		return l.ID
	}
	if id, ok := g.byAccount(account); isAccount && ok {
		if l, ok := g.cfg.Leases.ByID(id); ok && l.Target == g.cfg.Target {
			return id
		}
	}
	return ""
}

// resource writes NAMESPACE/RESOURCE.GROUP/NAME/SUBRESOURCE, without what is absent.
func (e *event) resource() string {
	kind := e.Object.Resource
	if e.Object.Group != "" {
		kind += "." + e.Object.Group
	}
	parts := slices.DeleteFunc([]string{e.Object.Namespace, kind, e.Object.Name, e.Object.Subresource}, func(s string) bool { return s == "" })
	return cut(strings.Join(parts, "/"))
}

func (e *event) detail() map[string]string {
	d := map[string]string{
		"user": e.User.Name, "client": e.Agent, "decision": e.Annotations["authorization.k8s.io/decision"],
		"reason": e.Annotations["authorization.k8s.io/reason"], "images": e.Annotations["remit-agents/images"],
		"refused": e.Annotations["validation.policy.admission.k8s.io/validation_failure"],
	}
	if _, query, _ := strings.Cut(e.URI, "?"); query != "" {
		if q, err := url.ParseQuery(query); err == nil {
			d["dry_run"] = q.Get("dryRun") // nothing was done, whatever the status says
		}
	}
	if len(e.SourceIPs) > 0 {
		d["from"] = e.SourceIPs[0]
	}
	if e.Impersonated != nil {
		d["impersonated"] = e.Impersonated.Name
	}
	for k, v := range d {
		if v == "" {
			delete(d, k)
		} else {
			d[k] = cut(v)
		}
	}
	return d
}

// cut bounds a text from outside, at a character's end.
func cut(s string) string {
	if len(s) <= maxText {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	s = s[:maxText]
	for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return strings.ToValidUTF8(s, "") + "…"
}
