// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
)

// TestToolImage: later runs of a tool go on from where it had started, in a sandbox without identity, way out and run token; each then
// has its own. What its file says now is what counts.
func TestToolImage(t *testing.T) {
	r := setUpSandboxed(t, "kernel\n  checkpoint: true")
	const nothing, all = " token: false, identity: false", " token: true, identity: true"
	if first := r.call("born", nil); !strings.HasSuffix(first, all) {
		t.Fatal(first)
	}
	r.waitSpare()
	born, identities := "", map[string]bool{}
	for n := range 2 {
		r.anotherRun()
		got := r.call("born", nil)
		if !strings.HasSuffix(got, nothing) || (born != "" && got != born) {
			t.Fatalf("run %d: %s; before %s", n, got, born)
		}
		born = got
		if e := r.entries(remit.EventSandboxStarted, n+2)[n+1]; !e.Data.Restored || !e.Data.Warm || e.Data.About.Tier != remit.TierKernel {
			t.Errorf("run %d: %+v", n, e)
		}
		who := r.call("identity", nil)
		if !strings.Contains(who, "spiffe://company.com/tool/issue-refund") || identities[who] {
			t.Errorf("run %d: %s", n, who)
		}
		identities[who] = true
		if got := r.call("refund", map[string]any{"url": r.url + "/refunds", "customer": 555, "amount": 40}); got != "200 paid" {
			t.Errorf("run %d: %s", n, got)
		}
		r.waitSpare()
	}
	def := r.srv.rev.Load().set.Tools["tool/issue-refund"]
	other := def
	other.Environment = map[string]string{"LANG": "en"}
	if r.srv.toolImages.of(&def, "gvisor") == "" || r.srv.toolImages.of(&other, "gvisor") != "" || r.srv.toolImages.of(&def, "firecracker") != "" {
		t.Error("an image is of one definition of the tool, for one driver")
	}
	config := r.dir + "/" + dirConfig + "/story.yaml"
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	r.write(strings.Replace(string(b), "{LANG: C}", "{LANG: en}", 1))
	r.must("/v1/apply", nil, nil)
	r.anotherRun()
	if got := r.call("environment", nil); !strings.Contains(got, "LANG=en") {
		t.Errorf("started from the image of another file: %s", got)
	}
	if got := r.call("born", nil); got == born {
		t.Error("started from an image that is of another file")
	}

	// An image that is of no use costs one start, and is given up.
	r.waitSpare()
	def = r.srv.rev.Load().set.Tools["tool/issue-refund"]
	image := r.srv.toolImages.of(&def, "gvisor")
	if err := os.Truncate(filepath.Join(image, "checkpoint.img"), 100); err != nil {
		t.Fatal(err)
	}
	b2 := r.srv.spares.take(t.Context(), &def)
	if b2 == nil || b2.Start(t.Context()) == nil {
		t.Fatal("it starts from a damaged image")
	}
	if _, err := b2.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if again := r.srv.toolImages.of(&def, "gvisor"); again == image {
		t.Error("a damaged image is kept")
	}
	r.anotherRun()
	if got := r.call("born", nil); !strings.HasSuffix(got, all) {
		t.Error(got)
	}
}

// TestMuteToolKeepsNoServer: a tool that is to have an image and never answers does not hold up the server's end.
func TestMuteToolKeepsNoServer(t *testing.T) {
	r := setUpSandboxed(t, "kernel\n  checkpoint: true")
	mute := r.srv.rev.Load().set.Tools["tool/issue-refund"]
	mute.Name, mute.Command = "tool/mute", []string{"/usr/bin/sleep", "1000"}
	r.srv.spares.refill(&mute)
	r.eventually("it is started", func() bool {
		free := r.srv.toolImages.taking.TryLock()
		if free {
			r.srv.toolImages.taking.Unlock()
		}
		return !free
	})
	began := time.Now()
	r.srv.spares.close()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}
