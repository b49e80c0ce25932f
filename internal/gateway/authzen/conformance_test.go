// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// people of the interop scenario "todo": id, email and roles. An id becomes the path of a SPIFFE ID, because Remit's subjects
// are workloads; everything else of a vector is sent as it stands.
var people = map[string]struct{ email, roles string }{
	"CiRmZDA2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs": {"rick@the-citadel.com", "admin evil_genius"},
	"CiRmZDE2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs": {"morty@the-citadel.com", "editor"},
	"CiRmZDI2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs": {"summer@the-smiths.com", "editor"},
	"CiRmZDM2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs": {"beth@the-smiths.com", "viewer"},
	"CiRmZDQ2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs": {"jerry@the-smiths.com", "viewer"},
}

// todo judges by the scenario's rules.
func todo(req *remit.Request) (remit.Decision, error) {
	var who struct{ email, roles string }
	for id, p := range people {
		if string(req.Agent) == "agent/"+id {
			who = p
		}
	}
	own := req.Args["ownerID"].Text() == who.email && strings.Contains(who.roles, "editor")
	ok := false
	switch req.Action {
	case "can_read_user", "can_read_todos":
		ok = who.email != ""
	case "can_create_todo":
		ok = strings.Contains(who.roles, "admin") || strings.Contains(who.roles, "editor")
	case "can_update_todo":
		ok = strings.Contains(who.roles, "evil_genius") || own
	case "can_delete_todo":
		ok = strings.Contains(who.roles, "admin") || own
	}
	if ok {
		return allow(req)
	}
	return remit.Decision{}, nil
}

func todoFixture(t testing.TB) *fixture {
	f := newFixture(t, todo)
	domain := spiffeid.RequireTrustDomainFromString("todo.example")
	for id := range people {
		f.Agents[spiffeid.RequireFromPath(domain, "/user/"+id)] = remit.Name("agent/" + id)
	}
	point := f.Points[f.ID("/pep/gate")]
	point.TrustDomains = append(point.TrustDomains, domain)
	point.Actions = []string{"can_read_user", "can_read_todos", "can_create_todo", "can_update_todo", "can_delete_todo"}
	f.Points[point.ID] = point
	return f
}

type vectors struct {
	Evaluation []struct {
		Request  json.RawMessage `json:"request"`
		Expected bool            `json:"expected"`
	} `json:"evaluation"`
	Evaluations []struct {
		Request  json.RawMessage           `json:"request"`
		Expected []struct{ Decision bool } `json:"expected"`
	} `json:"evaluations"`
}

// asWorkload names the vector's user by a SPIFFE ID.
func asWorkload(raw json.RawMessage) string {
	s := strings.ReplaceAll(string(raw), `"id": "CiRmZD`, `"id": "spiffe://todo.example/user/CiRmZD`)
	at := strings.Index(s, `"subject"`)
	return s[:at] + strings.Replace(s[at:], `"type": "user"`, `"type": "workload"`, 1)
}

// TestTodoVectors sends all 43 vectors of the working group's interop scenario through the real handlers. Status and type of
// the answers are checked too: an error body must never count as a denial.
func TestTodoVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/todo-decisions.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Evaluation) != 40 || len(v.Evaluations) != 3 {
		t.Fatalf("%d + %d vectors", len(v.Evaluation), len(v.Evaluations))
	}
	f := todoFixture(t)
	allowed := 0
	for i, c := range v.Evaluation {
		w := f.post("/pep/gate", single, asWorkload(c.Request))
		got := read(t, w)
		if got.Decision == nil || *got.Decision != c.Expected {
			t.Errorf("evaluation %d: %s, want %v: %s", i, w.Body, c.Expected, c.Request)
		}
		if c.Expected {
			allowed++
		}
		// As written, the subject is no workload: a well-formed request and a denial.
		if got := read(t, f.post("/pep/gate", single, string(c.Request))); got.Decision == nil || *got.Decision {
			t.Errorf("evaluation %d: a user was allowed", i)
		}
	}
	for i, c := range v.Evaluations {
		got := read(t, f.post("/pep/gate", batch, asWorkload(c.Request)))
		if len(got.Evaluations) != len(c.Expected) {
			t.Errorf("evaluations %d: %d answers", i, len(got.Evaluations))
			continue
		}
		for j, e := range c.Expected {
			if d := got.Evaluations[j].Decision; d == nil || *d != e.Decision {
				t.Errorf("evaluations %d.%d: want %v", i, j, e.Decision)
			}
		}
	}
	t.Logf("40 + 3 vectors, %d of 40 allowed", allowed)
}
