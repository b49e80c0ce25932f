// SPDX-License-Identifier: Apache-2.0

package ticket_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/evidencetest"
	"remit/internal/evidence/ticket"
)

func TestMain(m *testing.M) {
	evidencetest.DeskMain()
	os.Exit(m.Run())
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// claims is the contract of ticket.Claims, in memory.
type claims struct {
	mu   sync.Mutex
	runs map[string]remit.RunID
	down bool
}

func (c *claims) Claim(_ context.Context, source, id string, run remit.RunID) (remit.RunID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return "", errors.New("the store is closed")
	}
	if c.runs == nil {
		c.runs = map[string]remit.RunID{}
	}
	if _, ok := c.runs[source+"/"+id]; !ok {
		c.runs[source+"/"+id] = run
	}
	return c.runs[source+"/"+id], nil
}

type fixture struct {
	*evidencetest.Desk
	t      *testing.T
	source *ticket.Source
	claims *claims
	now    time.Time
}

func newFixture(t *testing.T, change func(*ticket.Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, Desk: evidencetest.StartDesk(t), claims: &claims{}, now: noon}
	cfg := config()
	cfg.URL, cfg.CA = f.URL+"/api/changes/{id}?full=1", f.CA
	if change != nil {
		change(&cfg)
	}
	source, err := ticket.New(cfg, ticket.Deps{Name: "change-desk", Claims: f.claims, Now: func() time.Time { return f.now },
		Secret: func(ticket.SecretRef) (remit.Secret, error) { return remit.NewSecret("desk-token"), nil },
		Parties: func(*remit.Request) ([]string, error) {
			return []string{"operator/ci", "Dana Owner", "dana@company.example"}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	f.source = source
	return f
}

func config() ticket.Config {
	return ticket.Config{URL: "https://desk.example/{id}", ID: "CHG-[0-9/.]{1,9}", Token: ticket.SecretRef{Env: "DESK_TOKEN"},
		Fields: map[string]string{"id": "/number", "state": "/state", "service": "/ci/name", "namespace": "/ci/namespace", "start": "/window/0",
			"end": "/window/1", "requester": "/requester/login", "approver": "/approver/login", "requester_groups": "/requester/groups",
			"approver_groups": "/approver/groups", "customer": "/customer"},
		RequesterGroups: []string{"platform"}, ApproverGroups: []string{"change-board", "cto"},
		People: map[string]string{"x4711": "operator/ci"}}
}

type object = map[string]any

func change(id string) object {
	return object{"number": id, "state": "approved", "customer": 555, "ci": object{"name": "foo", "namespace": "production"},
		"window":    []string{"2026-11-23T11:00:00Z", "2026-11-23T13:00:00Z"},
		"requester": object{"login": "rita", "groups": []string{"staff", "platform"}}, "approver": object{"login": "abe", "groups": "change-board"}}
}

func (f *fixture) serve(id string, body any) {
	f.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Put("/api/changes/"+id, evidencetest.Reply{Body: string(b)})
}

func request() *remit.Request {
	return &remit.Request{At: noon, Agent: "agent/deploy", Run: "run-a", Target: "production-cluster",
		Args: remit.Args{"name": remit.StringValue("foo"), "namespace": remit.StringValue("production")}}
}

func need(id string) remit.Need {
	return remit.Need{Kind: remit.EvidenceTicket, Source: "change-desk", ID: id, Match: map[string]string{"state": "approved"}}
}

func (f *fixture) refuses(n remit.Need, req *remit.Request, code remit.ReasonCode) {
	f.t.Helper()
	e, reason := f.source.Find(context.Background(), n, req)
	if e != nil || reason == nil || reason.Code != code {
		f.t.Errorf("Find = %+v, %+v; want %s", e, reason, code)
	}
}

func TestTicket(t *testing.T) {
	f := newFixture(t, nil)
	f.serve("CHG-1", change("CHG-1"))
	e, reason := f.source.Find(context.Background(), need("CHG-1"), request())
	if reason != nil {
		t.Fatalf("%+v", reason)
	}
	want := map[string]string{"id": "CHG-1", "state": "approved", "service": "foo", "namespace": "production", "customer": "555",
		"start": "2026-11-23T11:00:00Z", "end": "2026-11-23T13:00:00Z", "requester": "rita", "approver": "abe"}
	if !maps.Equal(e.Fields, want) || e.Name != "CHG-1" || e.Kind != remit.EvidenceTicket || e.Source != "change-desk" || e.ID == "" || e.Digest == "" {
		t.Errorf("found %+v", e)
	}
	if !e.Until.Equal(noon.Add(time.Hour)) || !e.Verified.Equal(noon) {
		t.Errorf("until %s, verified %s", e.Until, e.Verified)
	}
}

func TestWrongTicketHasItsOwnReason(t *testing.T) {
	f := newFixture(t, nil)
	set := func(path string, value any) func(object) {
		return func(o object) {
			keys := strings.Split(path, "/")
			for _, k := range keys[:len(keys)-1] {
				o = o[k].(object)
			}
			o[keys[len(keys)-1]] = value
		}
	}
	for name, row := range map[string]struct {
		change func(object)
		code   remit.ReasonCode
	}{
		"another id":              {set("number", "CHG-9"), remit.ReasonEvidenceSubject},
		"another service":         {set("ci/name", "bar"), remit.ReasonEvidenceField},
		"another namespace":       {set("ci/namespace", "staging"), remit.ReasonEvidenceField},
		"no namespace":            {set("ci", object{"name": "foo"}), remit.ReasonEvidenceInvalid},
		"no state":                {set("state", nil), remit.ReasonEvidenceInvalid},
		"state is a list":         {set("state", []string{"approved"}), remit.ReasonEvidenceInvalid},
		"window is over":          {set("window", []string{"2026-11-23T10:00:00Z", "2026-11-23T12:00:00Z"}), remit.ReasonEvidenceStale},
		"window is to come":       {set("window", []string{"2026-11-23T12:00:01Z", "2026-11-23T13:00:00Z"}), remit.ReasonEvidenceStale},
		"window without a zone":   {set("window", []string{"2026-11-23T11:00:00", "2026-11-23T13:00:00"}), remit.ReasonEvidenceInvalid},
		"requester of no group":   {set("requester/groups", []string{"staff"}), remit.ReasonEvidenceField},
		"requester without group": {set("requester", object{"login": "rita"}), remit.ReasonEvidenceField},
		"approver of no group":    {set("approver/groups", "platform"), remit.ReasonEvidenceField},
		"approved by the agent":   {set("approver/login", "deploy"), remit.ReasonEvidenceField},
		"requested by the agent":  {set("requester/login", "agent/deploy"), remit.ReasonEvidenceField},
		"approved by the owner":   {set("approver/login", "Dana"), remit.ReasonEvidenceField},
		"approved by the starter": {set("approver/login", "CI@company.example"), remit.ReasonEvidenceField},
		"the starter's login":     {set("approver/login", "x4711"), remit.ReasonEvidenceField},
		"approved by requester":   {set("approver/login", "RITA"), remit.ReasonEvidenceField},
	} {
		o := change("CHG-1")
		row.change(o)
		f.serve("CHG-1", o)
		f.now = f.now.Add(time.Minute) // past the cache
		if f.refuses(need("CHG-1"), request(), row.code); t.Failed() {
			t.Fatal(name)
		}
	}
	if len(f.claims.runs) > 0 {
		t.Errorf("a refused ticket was used up: %v", f.claims.runs)
	}
	f.Put("/api/changes/CHG-1", evidencetest.Reply{Body: `{"number":"CHG-1","number":"CHG-1"}`})
	f.now = f.now.Add(time.Minute)
	f.refuses(need("CHG-1"), request(), remit.ReasonEvidenceInvalid)
	wrong := request()
	delete(wrong.Args, "namespace")
	f.serve("CHG-2", change("CHG-2"))
	f.refuses(need("CHG-2"), wrong, remit.ReasonEvidenceField)
}

func TestIDIsNeverAPath(t *testing.T) {
	f := newFixture(t, nil)
	for _, id := range []string{"CHG-1\n", "xCHG-1", "CHG-1?x=1", "../CHG-1", "CHG-", strings.Repeat("CHG-1", 40)} {
		f.refuses(need(id), request(), remit.ReasonEvidenceInvalid)
	}
	f.refuses(need(""), request(), remit.ReasonEvidenceMissing)
	f.refuses(need("CHG-1/../2"), request(), remit.ReasonEvidenceMissing) // the pattern allows it; the URL must not
	if f.Asked("/api/changes/CHG-1%2F..%2F2") != "1" || f.Asked("/api/changes/2") != "0" {
		t.Error("the id is not one escaped segment of the path")
	}
}

func TestDeskFails(t *testing.T) {
	f := newFixture(t, func(c *ticket.Config) { c.Timeout = 200 * time.Millisecond })
	body, err := json.Marshal(change("CHG-1"))
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]evidencetest.Reply{
		"slow":         {Delay: 3 * time.Second, Body: string(body)},
		"error":        {Status: 500, Body: string(body)},
		"redirect":     {Status: 302, Location: f.URL + "/api/changes/CHG-2", Body: string(body)},
		"unauthorized": {Status: 401},
	} {
		f.serve("CHG-2", change("CHG-1"))
		f.Put("/api/changes/CHG-1", r)
		start := time.Now()
		f.refuses(need("CHG-1"), request(), remit.ReasonEvidenceSource)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
	if f.Asked("/api/changes/CHG-2") != "0" {
		t.Error("a redirect was followed")
	}
	f.Put("/api/changes/CHG-1", evidencetest.Reply{Body: `{"number":"` + strings.Repeat("x", 256<<10) + `"}`})
	f.refuses(need("CHG-1"), request(), remit.ReasonEvidenceInvalid)
	f.Put("/api/changes/CHG-1", evidencetest.Reply{Endless: true}) // read to the limit, not to the timeout
	f.refuses(need("CHG-1"), request(), remit.ReasonEvidenceInvalid)
	f.refuses(need("CHG-404"), request(), remit.ReasonEvidenceMissing)
	f.refuses(remit.Need{Kind: remit.EvidenceScan, ID: "CHG-1"}, request(), remit.ReasonEvidenceMissing)
}

func TestUntrustedCertificate(t *testing.T) {
	f := newFixture(t, func(c *ticket.Config) { c.CA = "" })
	f.serve("CHG-1", change("CHG-1"))
	f.refuses(need("CHG-1"), request(), remit.ReasonEvidenceSource)
	if f.Asked("/api/changes/CHG-1") != "0" {
		t.Error("the token went to a server that nobody vouches for")
	}
}

func TestOneTicketServesOneRun(t *testing.T) {
	f := newFixture(t, nil)
	f.serve("CHG-1", change("CHG-1"))
	for range 2 {
		if _, reason := f.source.Find(context.Background(), need("CHG-1"), request()); reason != nil {
			t.Fatalf("%+v", reason)
		}
	}
	other := request()
	other.Run = "run-b"
	f.refuses(need("CHG-1"), other, remit.ReasonEvidenceField)
	f.claims.down = true
	f.refuses(need("CHG-1"), request(), remit.ReasonEvidenceSource)
}

func TestRefusedStateIsNotClaimed(t *testing.T) {
	f := newFixture(t, nil)
	o := change("CHG-1")
	o["state"] = "draft"
	f.serve("CHG-1", o)
	e, reason := f.source.Find(context.Background(), need("CHG-1"), request())
	if reason != nil || e.Fields["state"] != "draft" || len(f.claims.runs) != 0 { // policy answers evidence_field
		t.Errorf("%+v %+v %v", e, reason, f.claims.runs)
	}
}

func TestStateIsReadAgain(t *testing.T) {
	f := newFixture(t, nil)
	f.serve("CHG-1", change("CHG-1"))
	e, reason := f.source.Find(context.Background(), need("CHG-1"), request())
	if reason != nil {
		t.Fatalf("%+v", reason)
	}
	closed := change("CHG-1")
	closed["state"] = "closed"
	f.serve("CHG-1", closed)
	f.now = noon.Add(ticket.MaxAge)
	if again, _ := f.source.Find(context.Background(), need("CHG-1"), request()); again == nil || again.Fields["state"] != "approved" || !again.Verified.Equal(noon) {
		t.Errorf("within 30 s: %+v", again)
	}
	if reason := f.source.Fresh(context.Background(), e); reason != nil {
		t.Errorf("within 30 s: %+v", reason)
	}
	f.now = f.now.Add(time.Nanosecond)
	if reason := f.source.Fresh(context.Background(), e); reason == nil || reason.Code != remit.ReasonEvidenceField {
		t.Errorf("Fresh after the ticket was closed: %+v", reason)
	}
	if again, _ := f.source.Find(context.Background(), need("CHG-1"), request()); again == nil || again.Fields["state"] != "closed" {
		t.Errorf("after 30 s: %+v", again)
	}
	f.now = noon.Add(time.Hour)
	if reason := f.source.Fresh(context.Background(), e); reason == nil || reason.Code != remit.ReasonEvidenceStale {
		t.Errorf("Fresh after the window: %+v", reason)
	}
	if f.Asked("/api/changes/CHG-1") != "2" {
		t.Errorf("asked %s times", f.Asked("/api/changes/CHG-1"))
	}
}

func TestConfigIsChecked(t *testing.T) {
	deps := ticket.Deps{Name: "x", Claims: &claims{}, Secret: func(ticket.SecretRef) (remit.Secret, error) { return remit.Secret{}, nil },
		Parties: func(*remit.Request) ([]string, error) { return nil, nil }}
	if _, err := ticket.New(config(), deps); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ticket.Config){
		"http":            func(c *ticket.Config) { c.URL = "http://desk.example/{id}" },
		"user":            func(c *ticket.Config) { c.URL = "https://a:b@desk.example/{id}" },
		"id in host":      func(c *ticket.Config) { c.URL = "https://{id}.example/x" },
		"id in query":     func(c *ticket.Config) { c.URL = "https://desk.example/x?id={id}" },
		"no id":           func(c *ticket.Config) { c.URL = "https://desk.example/x" },
		"part":            func(c *ticket.Config) { c.URL = "https://desk.example/x{id}" },
		"twice":           func(c *ticket.Config) { c.URL = "https://desk.example/{id}/{id}" },
		"no pattern":      func(c *ticket.Config) { c.ID = "" },
		"empty matches":   func(c *ticket.Config) { c.ID = ".*" },
		"broken pattern":  func(c *ticket.Config) { c.ID = "(" },
		"anchors slipped": func(c *ticket.Config) { c.ID = "CHG-[0-9]+)|(?:.+" },
		"field missing":   func(c *ticket.Config) { delete(c.Fields, "approver") },
		"no pointer":      func(c *ticket.Config) { c.Fields["x"] = "x" },
		"no groups":       func(c *ticket.Config) { c.ApproverGroups = nil },
		"same unknown":    func(c *ticket.Config) { c.Same = map[string]string{"team": "name"} },
		"long timeout":    func(c *ticket.Config) { c.Timeout = time.Minute },
		"two tokens":      func(c *ticket.Config) { c.Token.File = "x" },
		"no such ca":      func(c *ticket.Config) { c.CA = "no-such-file" },
		"odd person":      func(c *ticket.Config) { c.People = map[string]string{"x": "ann"} },
	} {
		cfg := config()
		change(&cfg)
		if _, err := ticket.New(cfg, deps); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ticket.New(config(), ticket.Deps{Name: "x"}); err == nil {
		t.Error("taken without claims")
	}
}
