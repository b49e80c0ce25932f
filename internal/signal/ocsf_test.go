// SPDX-License-Identifier: Apache-2.0

package signal_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"remit"
	"remit/internal/signal"
)

// demanded is what the schema of OCSF 1.9 requires: of every event, of each class, and of the objects that are in them. From
// github.com/ocsf/ocsf-schema (events/base_event.json, events/findings, events/iam, events/application, objects; dictionary.json for
// the numbers), at 1.9.0-dev of July 2026. OneOf are its constraints "at_least_one".
var demanded = map[string]struct{ all, oneOf []string }{
	"*":    {[]string{"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}, nil},
	"2004": {[]string{"finding_info"}, nil},
	"3003": {[]string{"user"}, []string{"privileges", "groups", "iam_roles"}},
	"3007": {[]string{"user"}, nil},
	"6003": {[]string{"actor", "api", "src_endpoint"}, nil},

	"metadata":                 {[]string{"product", "version"}, nil},
	"product":                  {nil, []string{"name", "uid"}},
	"actor":                    {nil, []string{"process", "user", "iam_role", "invoked_by", "session", "app_name", "app_uid"}},
	"user":                     {nil, []string{"account", "name", "uid"}},
	"programmatic_credentials": {[]string{"uid"}, nil},
	"api":                      {[]string{"operation"}, nil},
	"service":                  {nil, []string{"name", "uid"}},
	"request":                  {[]string{"uid"}, nil},
	"src_endpoint":             {nil, []string{"ip", "uid", "name", "hostname", "svc_name"}},
	"resources":                {nil, []string{"name", "uid"}},
	"policy":                   {nil, []string{"name", "type", "uid"}},
	"finding_info":             {[]string{"uid"}, nil},
	"analytic":                 {[]string{"type_id"}, nil},
	"related_events":           {[]string{"uid"}, nil},
	"evidences":                {nil, []string{"actor", "api", "resources", "user"}},
}

// activities and numbers are those that the schema knows.
var activities = map[string][]float64{"2004": {1, 2, 3}, "3003": {1, 2, 3}, "3007": {1, 2, 3, 4, 5, 6, 7, 14, 15, 16, 17, 18, 19}, "6003": {1, 2, 3, 4, 99}}

var numbers = map[string][]float64{"severity_id": {0, 1, 2, 3, 4, 5, 6, 99}, "action_id": {0, 1, 2, 3, 4, 99}, "disposition_id": {1, 2, 14}}

// holds holds an object to what is demanded, and everything in it.
func holds(t *testing.T, at, name string, v any) {
	t.Helper()
	switch v := v.(type) {
	case []any:
		if len(v) == 0 {
			t.Errorf("%s is empty", at)
		}
		for _, x := range v {
			holds(t, at, name, x)
		}
	case map[string]any:
		want := demanded[name]
		for _, k := range want.all {
			if x, ok := v[k]; !ok || x == "" {
				t.Errorf("%s has no %s", at, k)
			}
		}
		if len(want.oneOf) > 0 && !slices.ContainsFunc(want.oneOf, func(k string) bool { _, ok := v[k]; return ok }) {
			t.Errorf("%s has none of %v", at, want.oneOf)
		}
		for k, x := range v {
			holds(t, at+"."+k, k, x)
		}
	}
}

// TestOCSF: every kind that is told is an event of the schema's, says who and what, and holds no value.
func TestOCSF(t *testing.T) {
	const decision = `"reasons":[{"code":"argument_mismatch","of":"where.image","want":{"sd":"AAA"},"got":{"sd":"BBB"}}],"caller":"spiffe://company.com/agent/mail",
"credential":"77","agent":"agent/mail","action":"kubernetes.apply","target":"production","args":{"image":{"sd":"CCC"}},"permission":{"workflow":"w","stage":"s","permission":"p"},"policy":"sha256:11","via":"mcp"}`
	for _, c := range []struct{ kind, data, class, activity, has string }{
		{"finding.raised", `{"id":"find-1","kind":"unusual_behaviour","severity":"high","text":"odd","events":[3,5],"target":"mail","response":"suspend","score":9}`, "2004", "1", `"severity_id":4`},
		{"finding.closed", `{"id":"find-1","kind":"denial_burst","reason":"a test"}`, "2004", "3", `"uid":"find-1"`},
		{"agent.suspended", `{"reason":"touched the canary","finding":"find-1","ended_grants":2}`, "3007", "5", `"status_detail":"touched the canary"`},
		{"agent.reinstated", `{"reason":"settled"}`, "3007", "4", `"name":"agent/mail"`},
		{"decision", `{"effect":"deny",` + decision, "6003", "99", `"status_code":"argument_mismatch","status_detail":"argument_mismatch where.image"`},
		{"decision", `{"effect":"hold","hold":"hold-1",` + decision, "6003", "99", `"disposition_id":14`},
		{"decision", `{"effect":"allow",` + decision, "6003", "99", `"action_id":1`},
		{"decision", `{"effect":"deny","action":"","target":""}`, "6003", "99", `"action_id":2`},
		{"decision.folded", `{"into":[],"reasons":["limit"],"action":"a.b","target":"x","first":"2026-11-30T10:00:00Z","last":"2026-11-30T10:00:09Z","count":12}`, "6003", "99", `"count":12,"start_time":1796032800000`},
		{"grant", `{"action":"a.b","target":"x","issued":"2026-11-30T10:00:00Z","expires":"2026-11-30T10:05:00Z","scope":{"id":{"sd":"DDD"}}}`, "3003", "1", `"privileges":["a.b x"]`},
		{"lease.active", `{"credentials":["JTI=1"],"expires":"2026-11-30T10:05:00Z"}`, "3007", "18", `"programmatic_credentials":[{"uid":"lease-1"`},
		{"lease.failed", `{"why":{"sd":"EEE"},"ms":1}`, "3007", "18", `"status":"Failure"`},
		{"lease.revoking", `{"ms":1}`, "3007", "19", `"status":"revoking"`},
		{"lease.ended", `{"ms":1}`, "3007", "19", `"status":"Success"`},
	} {
		_, e := entry(c.kind, "agent/mail", "spiffe://company.com/agent/mail", strings.ReplaceAll(c.data, "\n", ""))
		e.Body = []byte(strings.Replace(string(e.Body), `"by":`, `"run":"run-1","decision":"dec-1","grant":"grant-1","lease":"lease-1","by":`, 1))
		s, ok := signal.Of(remit.EventKind(c.kind), e)
		if !ok {
			t.Fatal(c.kind)
		}
		body := s.OCSF(signal.Source{Version: "1.0", TrustDomain: "company.com"})
		var v map[string]any
		if err := json.Unmarshal(body, &v); err != nil {
			t.Fatal(err)
		}
		class := fmt.Sprint(v["class_uid"])
		if class != c.class || fmt.Sprint(v["activity_id"]) != c.activity || v["type_uid"] != v["class_uid"].(float64)*100+v["activity_id"].(float64) ||
			!slices.Contains(activities[class], v["activity_id"].(float64)) || !strings.Contains(string(body), c.has) {
			t.Errorf("%s: %s", c.kind, body)
		}
		for k, known := range numbers {
			if n, ok := v[k].(float64); ok && !slices.Contains(known, n) {
				t.Errorf("%s: %s %v", c.kind, k, n)
			}
		}
		if strings.Contains(string(body), `"sd"`) {
			t.Errorf("%s: a commitment is told: %s", c.kind, body)
		}
		holds(t, c.kind, "*", v)
		holds(t, c.kind, class, v)
		if again := s.OCSF(signal.Source{Version: "1.0", TrustDomain: "company.com"}); string(again) != string(body) {
			t.Errorf("%s: %s", c.kind, again)
		}
	}
}
