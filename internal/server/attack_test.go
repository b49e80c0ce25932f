// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway"
	"remit/internal/gateway/admin"
)

// TestGrantAndItsEnds: what must work, so that the refusals below mean something.
func TestGrantAndItsEnds(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	g := w.ask("write")
	if g.Secret == "" || f.backend.count() != 1 {
		t.Fatalf("no credential: %+v", g)
	}
	f.must("/v1/grants/"+string(g.Grant)+"/revoke", api.Reasoned{Reason: "test"}, nil)
	if f.backend.count() != 0 {
		t.Error("a revoked grant stands at the backend")
	}
	if g = w.ask("write"); g.Secret == "" {
		t.Fatalf("no second credential: %+v", g)
	}
	f.must("/v1/runs/"+string(r.ID)+"/finish", nil, nil)
	if f.backend.count() != 0 {
		t.Error("a grant outlives its run")
	}
	if g = w.ask("write"); g.code() != string(remit.ReasonRunEnded) {
		t.Errorf("a run that is over gives %+v", g)
	}
}

// TestStrangerOnAdminSocket: the peer's user is no operator (S2). Nothing answers him, whatever he says.
func TestStrangerOnAdminSocket(t *testing.T) {
	f := setUp(t, fmt.Sprintf("uid: %d", os.Getuid()), fmt.Sprintf("uid: %d", os.Getuid()+1))
	for _, op := range f.srv.ops() {
		method, path, _ := strings.Cut(op.Pattern, " ")
		path = strings.NewReplacer("{kind}", "agent", "{name}", "deploy", "{id}", "x", "{seq}", "1", "{target}", "cluster").Replace(path)
		var err error
		if method == http.MethodGet {
			err = f.admin.Get(t.Context(), path, nil, nil)
		} else {
			err = f.admin.Post(t.Context(), path, struct{}{}, nil)
		}
		if remit.CodeOf(err) != remit.CodeUnauthenticated {
			t.Errorf("%s: %v", op.Pattern, err)
		}
	}
	info, err := os.Stat(filepath.Join(f.dir, "run", "admin.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the admin socket has mode %v, %v", info.Mode(), err)
	}
}

// TestRoles: an auditor reads the ledger, and changes nothing; what he tries is on record.
func TestRoles(t *testing.T) {
	f := setUp(t, "roles: [admin]", "roles: [auditor]")
	before := f.events(remit.EventAdmin)
	refused := 0
	for _, op := range f.srv.ops() {
		if op.Role == "" || op.Role == "auditor" {
			continue
		}
		method, path, _ := strings.Cut(op.Pattern, " ")
		path = strings.NewReplacer("{kind}", "agent", "{name}", "deploy", "{id}", "x").Replace(path)
		code := remit.Code("")
		if method == http.MethodGet {
			code = remit.CodeOf(f.admin.Get(t.Context(), path, nil, nil))
		} else {
			code = f.post(path, api.Reasoned{Reason: "x"}, nil)
		}
		if code != remit.CodeForbidden {
			t.Errorf("%s: %s", op.Pattern, code)
		}
		refused++
	}
	if n := f.events(remit.EventAdmin) - before; n != refused || refused == 0 {
		t.Errorf("%d of %d refusals are on record", n, refused)
	}
	if err := f.admin.Get(t.Context(), "/v1/ledger", nil, nil); err != nil {
		t.Error(err)
	}
	if code := f.post("/v1/runs", api.StartRun{Workflow: "theirs"}, nil); code != remit.CodeForbidden {
		t.Errorf("he starts a run of others: %s", code)
	}
}

// TestMalformedCalls: a clear error, and the server answers on.
func TestMalformedCalls(t *testing.T) {
	f := setUp(t)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(f.dir, "run", "admin.sock"))
	}}}
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{"/v1/runs", ``, 400},
		{"/v1/runs", `null`, 404}, // names no workflow
		{"/v1/runs", `{`, 400},
		{"/v1/runs", `[]`, 400},
		{"/v1/runs", `{"workflow":"deploy"}{}`, 400},
		{"/v1/runs", `{"workflow":"deploy","params":{"app":"foo"},"stage":"ship"}`, 400},
		{"/v1/runs", `{"workflow":"deploy","params":{"app":"foo","more":"x"}}`, 400},
		{"/v1/runs", `{"workflow":"theirs","params":{"image":"127.0.0.1:1/x:latest"}}`, 403},
		{"/v1/runs", `{"workflow":"` + strings.Repeat("x", 5<<20) + `"}`, 429},
		{"/v1/runs/../status", ``, 404},
		{"/v1/runs/run-x/finish", ``, 400},
		{"/v1/launches", `{"agent":"agent/nobody","run":"x"}`, 404},
		{"/v1/launches/lnch-x/pid", `{"pid":1}`, 404},
		{"/v1/agents/agent/deploy/suspend", `{"reason":" "}`, 400},
		{"/v1/agents/operator/ci/suspend", `{"reason":"x"}`, 404},
		{"/v1/evidence", `{"source":"nothing","envelope":{}}`, 404},
		{"/v1/backup", `{"path":"relative"}`, 400},
		{"/v1/nothing", ``, 404},
	} {
		res, err := client.Post("http://admin"+c.path, "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != c.want {
			t.Errorf("%s %.60s: %d, not %d", c.path, c.body, res.StatusCode, c.want)
		}
	}
	var st api.Status
	if err := f.admin.Get(t.Context(), "/v1/status", nil, &st); err != nil || st.You != "operator/ci" {
		t.Errorf("%+v %v", st, err)
	}
}

// TestLaunchRefused: S4. Each refusal is on record, and no socket is left.
func TestLaunchRefused(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	shipped := f.startRun()
	f.must("/v1/runs/"+string(shipped.ID)+"/advance", api.AdvanceRun{To: "ship"}, nil)
	over := f.startRun()
	f.must("/v1/runs/"+string(over.ID)+"/finish", nil, nil)
	before := f.events(remit.EventLaunch)
	for name, c := range map[string]struct {
		in   api.Launch
		want remit.Code
	}{
		"nobody may launch it":    {api.Launch{Run: r.ID, Agent: "agent/build"}, remit.CodeForbidden},
		"only another may":        {api.Launch{Run: r.ID, Agent: "agent/other"}, remit.CodeForbidden},
		"it is not in that stage": {api.Launch{Run: shipped.ID, Agent: "agent/deploy"}, remit.CodeForbidden},
		"the run is over":         {api.Launch{Run: over.ID, Agent: "agent/deploy"}, remit.CodeConflict},
	} {
		if code := f.post("/v1/launches", c.in, nil); code != c.want {
			t.Errorf("%s: %q", name, code)
		}
	}
	if n := f.events(remit.EventLaunch) - before; n != 4 {
		t.Errorf("%d of 4 refusals are on record", n)
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, "run", "l", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestLaunchOfAnotherProgram: S4. The server measures the process; one that runs what the agent's file does not list ends the
// launch, on record, and its socket and run token with it.
func TestLaunchOfAnotherProgram(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	var l api.Launched
	f.must("/v1/launches", api.Launch{Run: r.ID, Agent: "agent/deploy", For: "write"}, &l)
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	before := f.events(remit.EventLaunch)
	if code := f.post("/v1/launches/"+string(l.ID)+"/pid", api.LaunchPID{PID: other.Process.Pid}, nil); code != remit.CodeForbidden {
		t.Errorf("another program: %q", code)
	}
	if n := f.events(remit.EventLaunch) - before; n != 1 {
		t.Errorf("%d of 1 refusals are on record", n)
	}
	if rec, ok := f.srv.store.Launch(l.ID); !ok || rec.Ended.IsZero() {
		t.Errorf("the launch goes on: %+v", rec)
	}
	if code := f.post("/v1/launches/"+string(l.ID)+"/pid", api.LaunchPID{PID: os.Getpid()}, nil); code != remit.CodeNotFound {
		t.Errorf("the right program, too late: %q", code)
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, "run", "l", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestAgentOfOperatorsUser: S2. A file that makes an operator's user an agent is refused when it is loaded.
func TestAgentOfOperatorsUser(t *testing.T) {
	f := setUp(t)
	f.srv.cfg.AllowOwnUID = false
	mine := strconv.Itoa(os.Getuid())
	for name, doc := range map[string]string{
		"attested":          "kind: Agent\nname: evil\nattest: [{unix: {uid: " + mine + "}}]\n",
		"launched":          "kind: Agent\nname: evil\nlaunch: {by: [operator/ci], commands: [\"" + string(command()) + "\"], uid: " + mine + "}\n",
		"a tool":            "kind: Tool\nname: evil\nattest: [{unix: {uid: " + mine + "}}]\n",
		"enforcement point": "kind: EnforcementPoint\nname: evil\nactions: [\"memory.*\"]\nattest: [{unix: {uid: " + mine + ", path: /bin/x}}]\n",
		"":                  "kind: Agent\nname: fine\nattest: [{unix: {uid: 54321}}]\nlaunch: {by: [operator/ci], commands: [\"" + string(command()) + "\"], uid: 54321}\n",
	} {
		f.write(doc)
		err := f.admin.Post(t.Context(), "/v1/apply", nil, nil)
		if refused := err != nil && strings.Contains(err.Error(), "operator"); refused != (name != "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLaunchAsOperatorRefused: a child under an operator's user would hold his roles on the admin socket (S2).
func TestLaunchAsOperatorRefused(t *testing.T) {
	f := setUp(t)
	f.srv.cfg.AllowOwnUID = false // not before: the agents of this test are this process
	who, _, _ := f.srv.person(uint32(os.Getuid()))
	for name, c := range map[string]struct {
		launch remit.Launch
		ok     bool
	}{
		"the launcher's user":    {remit.Launch{}, false},
		"an operator's and ours": {remit.Launch{OwnUID: true, UID: uint32(os.Getuid())}, false},
		"one of its own":         {remit.Launch{OwnUID: true, UID: 54321}, true},
	} {
		c.launch.By, c.launch.Commands = []remit.Name{who}, []remit.Digest{command()}
		r := f.startRun()
		err := f.srv.mayLaunch(remit.Principal{Person: who}, &remit.Agent{Name: "agent/deploy", Launch: &c.launch}, &r)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// launch starts this process as an agent and returns it with its run token.
func (f *fixture) launch(r remit.Run) (api.Launched, *workload) {
	f.t.Helper()
	var l api.Launched
	f.must("/v1/launches", api.Launch{Run: r.ID, Agent: "agent/deploy", For: "write"}, &l)
	f.must("/v1/launches/"+string(l.ID)+"/pid", api.LaunchPID{PID: os.Getpid()}, nil)
	w := f.agent("agent/deploy", l.Socket)
	w.token = l.Token
	return l, w
}

// TestProductionNeedsLaunch: S3. The same agent, the same permission; only the launched one gets in, and only while it runs.
func TestProductionNeedsLaunch(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	if g := f.agent("agent/deploy", f.shared()).enter(r).ask("secret"); g.code() != string(remit.ReasonLevel) {
		t.Errorf("without launch: %+v", g)
	}
	l, w := f.launch(r)
	if g := w.ask("secret"); g.Secret == "" {
		t.Fatalf("launched: %+v", g)
	}
	if code := f.post("/v1/launches/"+string(l.ID)+"/pid", api.LaunchPID{PID: 1}, nil); code != remit.CodeConflict {
		t.Errorf("the launch takes a second process: %q", code)
	}
	f.must("/v1/launches/"+string(l.ID)+"/end", nil, nil)
	if g := w.ask("secret"); g.code() != string(remit.ReasonRunToken) {
		t.Errorf("after the launch: %+v", g)
	}
	if status := w.call("/v1/runs/"+string(r.ID)+"/advance", "application/json", nil, nil); status != http.StatusUnauthorized {
		t.Errorf("after the launch it still moves the run: %d", status)
	}
}

// TestRunTokenIsBound: S10. A token serves its holder, and no other certificate, launch, agent or run.
func TestRunTokenIsBound(t *testing.T) {
	f := setUp(t, findingsOf("{suspensions_an_hour: 0}")...) // or the first stolen token ends the rest
	r := f.startRun()
	w, build := f.agent("agent/deploy", f.shared()).enter(r), f.agent("agent/build", f.shared()).enter(r)
	_, launched := f.launch(r)
	for name, c := range map[string]struct {
		who   *workload
		token string
	}{
		"none":                              {w, ""},
		"another agent's":                   {w, build.token},
		"the launched one's, not launched":  {w, launched.token},
		"the certificate's, launched":       {launched, w.token},
		"broken":                            {w, w.token[:len(w.token)-4] + "AAAA"},
		"no signature":                      {w, w.token[:strings.LastIndex(w.token, ".")+1]},
		"an SVID's or grant's key and type": {w, "eyJhbGciOiJub25lIn0.e30."},
	} {
		who := *c.who
		who.token = c.token
		if g := who.ask("write"); g.Secret != "" {
			t.Errorf("%s: a credential", name)
		}
	}
	if g := w.ask("build"); g.code() != string(remit.ReasonNoPermission) {
		t.Errorf("another's permission: %+v", g)
	}
	if code := f.post("/v1/runs/"+string(r.ID)+"/token", api.TokenRequest{Agent: "agent/idle", Thumbprint: w.thumbprint()}, nil); code != remit.CodeForbidden {
		t.Errorf("a token for an agent that does nothing there: %q", code)
	}
}

// TestSuspended: S23. Grants of its runs end, whoever holds them, it gets nothing more, and the suspension outlives the server.
func TestSuspended(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w, build := f.agent("agent/deploy", f.shared()).enter(r), f.agent("agent/build", f.shared()).enter(r)
	if w.ask("write").Secret == "" || build.ask("build").Secret == "" {
		t.Fatal("no credential")
	}
	f.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "hijacked"}, nil)
	if n := f.backend.count(); n != 0 {
		t.Errorf("%d leases stand", n)
	}
	if g := w.ask("write"); g.code() != string(remit.ReasonSuspended) {
		t.Errorf("suspended: %+v", g)
	}
	if g := build.ask("build"); g.Secret != "" {
		t.Error("a frozen run gives credentials")
	}
	if x, err := f.tryAgent("agent/deploy", f.shared()); err == nil {
		t.Errorf("a suspended agent gets a fresh identity: %s", x.svid.ID)
	}
	if status := w.call("/v1/runs/"+string(r.ID)+"/finish", "application/json", nil, nil); status != http.StatusForbidden {
		t.Errorf("it ends the run: %d", status)
	}
	f.restart()
	if p := f.srv.store.Posture("agent/deploy"); !p.Suspended {
		t.Error("the suspension is forgotten")
	}
	f.must("/v1/agents/agent/deploy/reinstate", api.Reasoned{Reason: "cleaned"}, nil)
	if g := f.agent("agent/deploy", f.shared()).enter(f.startRun()).ask("write"); g.Secret == "" {
		t.Errorf("reinstated: %+v", g)
	}
}

// whileBusy calls f once, when the backend is asked to end something, in its middle.
func (b *backend) whileBusy(f func()) {
	done := make(chan struct{}, 1)
	done <- struct{}{}
	b.whenBusy(func() {
		select {
		case <-done:
			f()
		default:
		}
	})
}

// TestGrantDuringSuspension: another agent of the run asks while the suspended one's lease is being ended at a slow target.
func TestGrantDuringSuspension(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w, build := f.agent("agent/deploy", f.shared()).enter(r), f.agent("agent/build", f.shared()).enter(r)
	if w.ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	f.backend.whileBusy(func() {
		build.ask("build")
		if g := w.ask("write"); g.code() != string(remit.ReasonSuspended) {
			t.Errorf("before its lease has ended it is given %+v", g)
		}
	})
	f.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "hijacked"}, nil)
	f.backend.waitEmpty(t)
}

// TestSuspensionSaysWhatRemains: S23. What no suspension ends is in its answer: SVIDs, processes, leases at a target that does not
// confirm, acts at enforcement points.
func TestSuspensionSaysWhatRemains(t *testing.T) {
	f := setUp(t)
	f.write(f.files + "---\n{kind: Target, name: desk, type: external}\n---\n" + remains)
	f.must("/v1/apply", nil, nil)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	if w.ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	f.must("/v1/launches", api.Launch{Run: r.ID, Agent: "agent/deploy", For: "write"}, nil)
	f.backend.fail(true)
	var out api.Suspended
	f.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "hijacked"}, &out)
	f.backend.fail(false)
	got := map[string]api.Remaining{}
	for _, left := range out.Remaining {
		kind, _, _ := strings.Cut(left.What, " ")
		got[kind] = left
	}
	if l := got["lease"]; l.Where != "cluster" || !l.Until.After(time.Now()) {
		t.Errorf("the lease that is not ended: %+v", out.Remaining)
	}
	if l := got["1"]; !strings.Contains(l.What, "spiffe://company.com/agent/deploy") || !l.Until.After(time.Now()) {
		t.Errorf("the SVID: %+v", out.Remaining)
	}
	if l := got["the"]; l.Where != "this host" {
		t.Errorf("the process: %+v", out.Remaining)
	}
	if l := got["acts"]; l.Where != "desk" {
		t.Errorf("what an enforcement point does: %+v", out.Remaining)
	}
	f.backend.waitEmpty(t)
}

const remains = `kind: Workflow
name: told
start: {by: [operator/ci], expires: 1h}
stages:
- name: only
  may:
  - {name: tell, who: agent/deploy, action: desk.tell, target: desk}
`

// TestGrantDuringStageEnd: S11. The stage's grants are being ended at a slow target; the same agent asks once more.
func TestGrantDuringStageEnd(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	if w.ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	f.backend.whileBusy(func() { w.ask("write") })
	f.must("/v1/runs/"+string(r.ID)+"/advance", api.AdvanceRun{To: "ship"}, nil)
	if n := f.backend.count(); n != 0 {
		t.Errorf("%d grants outlive their stage", n)
	}
	next := f.agent("agent/build", f.shared()).enter(r)
	if g := next.ask("ship"); g.Secret == "" {
		t.Errorf("the next stage: %+v", g)
	}
	if f.backend.count() != 1 {
		t.Error("the next stage's grant does not stand")
	}
}

// TestSuspensionOffTheRecord: the record fails (as on a full disk) and is repeated.
func TestSuspensionOffTheRecord(t *testing.T) {
	f := setUp(t)
	f.srv.store.SetSuspended("agent/deploy", "hijacked")
	f.srv.unrecorded.Store(remit.Name("agent/deploy"), &suspension{agent: f.srv.rev.Load().set.Agents["agent/deploy"], why: "hijacked", by: remit.Principal{Person: "operator/ci"}})
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if st, ok := f.srv.store.AgentStatus("agent/deploy"); ok && st.Suspended {
			break
		}
		if time.Now().After(end) {
			t.Fatal("only in memory")
		}
	}
}

// TestLargeDenialIsOnRecord: what is too large for an entry of the ledger is denied, and leaves a trace all the same.
func TestLargeDenialIsOnRecord(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	type object = map[string]any
	body, err := json.Marshal(object{"subject": object{"type": "agent", "id": w.svid.ID.String()}, "action": object{"name": "memory.write"},
		"resource": object{"type": "memory", "id": "cluster", "properties": object{"app": "foo", "note": "NOTE"}},
		"context":  object{"run_token": w.token}})
	if err != nil {
		t.Fatal(err)
	}
	body = bytes.Replace(body, []byte("NOTE"), bytes.Repeat([]byte("x"), gateway.MaxBody-len(body)+4), 1)
	before := f.events(remit.EventDecision)
	var out struct{ Decision *bool }
	if status := w.call("/access/v1/evaluation", "application/json", bytes.NewReader(body), &out); status != 200 || out.Decision == nil || *out.Decision {
		t.Errorf("%d %+v", status, out)
	}
	if n := f.events(remit.EventDecision) - before; n != 1 {
		t.Errorf("%d decisions are on record", n)
	}
}

// TestAgentCallsAreBounded: an agent that may start nothing makes the server fetch nothing, and its refusals are on record until
// its quota is used up.
func TestAgentCallsAreBounded(t *testing.T) {
	f := setUp(t)
	asked := make(chan struct{}, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			select {
			case asked <- struct{}{}:
			default:
			}
		}
	}()
	w := f.agent("agent/deploy", f.shared())
	before := f.events(remit.EventAdmin)
	start := func() int {
		return w.call("/v1/runs", "application/json", strings.NewReader(`{"workflow":"theirs","params":{"image":"`+l.Addr().String()+`/x:latest"}}`), nil)
	}
	if status := start(); status != http.StatusForbidden {
		t.Errorf("%d", status)
	}
	select {
	case <-asked:
		t.Error("the server called where a stranger told it to")
	default:
	}
	if n := f.events(remit.EventAdmin) - before; n != 1 {
		t.Errorf("%d refusals are on record", n)
	}
	limited := false
	for range 2 * f.srv.cfg.Quotas.Runs.Burst {
		limited = limited || start() == http.StatusTooManyRequests
	}
	if !limited {
		t.Error("no quota")
	}
}

// TestBytesOfRunsAreCounted: bodies count against the quota of calls about runs, whatever stands in them, and whichever call it is.
func TestBytesOfRunsAreCounted(t *testing.T) {
	f := setUp(t, "# Who manages", "quotas: {runs: {bytes: 1024}}\n# Who manages")
	w := f.agent("agent/deploy", f.shared())
	large := strings.Repeat(" ", 60<<10)
	if status := w.call("/v1/runs", "application/json", strings.NewReader(large), nil); status != http.StatusBadRequest {
		t.Errorf("the first large body: %d", status)
	}
	for _, path := range []string{"/v1/runs", "/v1/runs/run-x/advance", "/v1/runs/run-x/finish"} {
		if status := w.call(path, "application/json", strings.NewReader(large), nil); status != http.StatusTooManyRequests {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status := w.call("/v1/runs", "application/json", strings.NewReader(`{}`), nil); status == http.StatusTooManyRequests {
		t.Error("a small body is beyond the quota, too")
	}
}

// TestEveryOpIsNamed: what is recorded must say what it was.
func TestEveryOpIsNamed(t *testing.T) {
	f := setUp(t)
	for _, op := range f.srv.ops() {
		if op.Name == "" || op.Do == nil || op.Writes == strings.HasPrefix(op.Pattern, "GET ") {
			t.Errorf("%+v", admin.Op{Pattern: op.Pattern, Name: op.Name, Writes: op.Writes})
		}
	}
}

// TestCutBySuspension: whoever is suspended while its credential is made is told so, and not that something was unavailable.
func TestCutBySuspension(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	f.backend.set(&f.backend.minting, func() {
		f.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "hijacked"}, nil)
	})
	if g := w.ask("write"); g.code() != string(remit.ReasonSuspended) || g.Secret != "" {
		t.Errorf("%+v", g)
	}
	f.backend.waitEmpty(t)
}
