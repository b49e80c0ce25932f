// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
)

// waitSpare waits until a sandbox is prepared for the tool's next run.
func (r *refunds) waitSpare() {
	r.t.Helper()
	p := &r.srv.spares
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		p.mu.Lock()
		s := p.byTool["tool/issue-refund"]
		ready := s != nil && s.box != nil
		p.mu.Unlock()
		if ready {
			return
		}
		if time.Now().After(end) {
			r.t.Fatal("nothing is prepared")
		}
	}
}

// anotherRun enters a fresh run of the workflow.
func (r *refunds) anotherRun() {
	r.t.Helper()
	r.must("/v1/runs", map[string]any{"workflow": "refund", "params": map[string]string{"customer": "555"}}, &r.run)
	r.caller.enter(r.run)
	r.client = r.connect()
}

// TestSpares: the next run of a tool gets a sandbox that was prepared, which nobody had before; what was prepared from files that are not
// as reviewed any more is nobody's. What a sandbox is and did can be seen while it runs and after.
func TestSpares(t *testing.T) {
	r := setUpSandboxed(t, "process")
	r.recovers()
	var list api.List[api.Sandbox]
	if err := r.admin.Get(t.Context(), "/v1/sandboxes", nil, &list); err != nil || len(list.Items) != 1 {
		t.Fatalf("%v %+v", err, list)
	}
	first := list.Items[0]
	if first.Warm || first.Tool != "tool/issue-refund" || first.Run != r.run.ID || first.Calls != 1 {
		t.Errorf("%+v", first)
	}
	r.waitSpare()
	r.anotherRun()
	r.recovers()
	second := r.entries(remit.EventSandboxStarted, 2)[1]
	if !second.Data.Warm || second.Data.Sandbox == first.ID || second.Run != r.run.ID {
		t.Errorf("%+v", second)
	}
	r.must("/v1/runs/"+string(r.run.ID)+"/finish", nil, nil)
	r.entries(remit.EventSandboxEnded, 1)
	var ended api.Sandbox
	if err := r.admin.Get(t.Context(), "/v1/sandboxes/"+string(second.Data.Sandbox), nil, &ended); err != nil || ended.Ended.IsZero() || ended.Calls != 1 ||
		ended.Why != "the run ended" || ended.Run != r.run.ID || !strings.Contains(string(ended.Usage), `"output"`) {
		t.Errorf("%v %+v", err, ended)
	}

	r.waitSpare()
	var shown api.Tool
	if err := r.admin.Get(t.Context(), "/v1/tools/issue-refund", nil, &shown); err != nil || shown.Tier != remit.TierProcess || len(shown.Problems) != 0 {
		t.Errorf("%v %+v", err, shown)
	}
	if err := os.WriteFile(filepath.Join(r.folder, "more"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.admin.Get(t.Context(), "/v1/tools/issue-refund", nil, &shown); err != nil || len(shown.Problems) != 1 || !strings.Contains(shown.Problems[0], "not what was reviewed") {
		t.Errorf("%v %+v", err, shown)
	}
	def := r.srv.rev.Load().set.Tools["tool/issue-refund"]
	if b := r.srv.spares.take(t.Context(), &def); b != nil {
		t.Errorf("what was prepared before is taken: %+v", b.about)
	}
}

// TestPinOfALocalTool: what a server in a sandbox says of its tools can be asked for outside any run.
func TestPinOfALocalTool(t *testing.T) {
	r := setUpSandboxed(t, "process")
	var review api.ToolReview
	if err := r.admin.Get(t.Context(), "/v1/tools/issue-refund/review", nil, &review); err != nil || review.Pinned || len(review.Tools) != 16 {
		t.Fatalf("%v %+v", err, review)
	}
	if list := r.srv.claims.List(); len(list) != 1 || list[0].Claim.Run != r.run.ID { // the client's
		t.Errorf("%+v", list)
	}
	// Pinned, a tool that changes meanwhile is held.
	pins := `{"tools":{`
	for i, x := range review.Tools {
		if i > 0 {
			pins += ","
		}
		pins += `"` + x.Name + `":{"digest":"` + string(x.Digest) + `","tool":` + string(x.Now) + `}`
	}
	if err := os.WriteFile(filepath.Join(r.dir, dirConfig, "hostile.pins.json"), []byte(pins+"}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(r.dir, dirConfig, "story.yaml")
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	r.write(strings.Replace(string(b), "name: issue-refund\n", "name: issue-refund\npins: hostile.pins.json\n", 1))
	r.must("/v1/apply", nil, nil)
	r.anotherRun()
	if got := r.call("change", nil); got != "changed" {
		t.Fatal(got)
	}
	if got := r.call("echo", map[string]any{"text": "hello"}); !strings.Contains(got, "target_unfit (pins)") {
		t.Errorf("a tool that changed: %s", got)
	}
}
