// SPDX-License-Identifier: Apache-2.0

package modes_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// endsWithoutRemit is mode jwt with nobody there to revoke: the token's own end counts, and the API server's cache.
func (w *world) endsWithoutRemit(t *testing.T) {
	t.Helper()
	w.ready(t)
	token, granted := w.token(t, "--ttl", "7s")
	w.served.end(os.Kill)
	dead := w.untilDead(t, token, 30*time.Second)
	t.Logf("jwt, Remit killed: a token for 7 s was dead %.1f s after it was granted", dead.Sub(granted).Seconds())
	if d := dead.Sub(granted); d > 17500*time.Millisecond {
		t.Errorf("a token for 7 s lived %s", d)
	}
	w.serve(t)
	w.fit(t)
}

// closedWithoutRemit: where the API server asks Remit, holders of leases are refused while it is dead, nobody else is, and
// afterwards new leases work.
func (w *world) closedWithoutRemit(t *testing.T) {
	t.Helper()
	w.ready(t)
	token, _ := w.token(t)
	w.served.end(os.Kill)
	began := time.Now()
	if got := w.get(t, token); got == http.StatusOK {
		t.Errorf("with Remit dead, an agent got through: %d", got)
	} else {
		t.Logf("%s, Remit killed: a holder gets %d after %.0f ms", w.mode, got, time.Since(began).Seconds()*1e3)
	}
	w.admin(t, "-n", nsTarget, "get", "deployment", app)
	w.admin(t, "--as=system:serviceaccount:remit:broker", "get", "validatingadmissionpolicy", "remit-agents")
	w.serve(t)
	w.fit(t)
	w.untilDead(t, token, 20*time.Second) // a launch does not outlive the server that measured it, nor a lease its launch
	if r := w.remit(t, "grant", "list"); r.code != 0 || !strings.Contains(r.out, "its launch ended") {
		t.Errorf("with Remit back: %s", r)
	}
	w.ready(t)
	token, _ = w.token(t)
	w.kills(t, token, "run", "finish", w.run)
}

// remembers turns each of the API server's caches on: doctor must see it, and see when it is mended. The API server reads the
// file again when it changes.
func (w *world) remembers(t *testing.T) {
	t.Helper()
	file := filepath.Join(w.etc, "authorization.yaml")
	good, err := os.ReadFile(file)
	must(t, err)
	for _, cache := range []string{"cacheAuthorizedRequests", "cacheUnauthorizedRequests", ""} {
		text, want := string(good), "answers are not remembered"
		if cache != "" {
			text = strings.NewReplacer(cache+": false", cache+": true", "TTL: 1s", "TTL: 1m").Replace(text)
			want = "its API server remembers Remit's answers"
		}
		must(t, os.WriteFile(file, []byte(text), 0o600))
		var r result
		for began := time.Now(); time.Since(began) < 100*time.Second && !strings.Contains(r.out, want); time.Sleep(500 * time.Millisecond) {
			r = w.remit(t, "doctor", target)
		}
		if !strings.Contains(r.out, want) || (r.code == 0) != (cache == "") {
			t.Fatalf("with %q on: %s", cache, r)
		}
	}
}

// TestSweeper: Remit is killed, the lease expires, and its credential lives on, as mode serviceaccount says. The sweeper, with
// nothing but its own account's token, ends it.
func TestSweeper(t *testing.T) {
	w := newWorld(t, option{mode: "serviceaccount"})
	w.allowed(t)
	longer, _ := w.token(t)
	token, granted := w.token(t, "--ttl", "6s")
	w.served.end(os.Kill)
	time.Sleep(time.Until(granted.Add(8 * time.Second)))
	if got := w.get(t, token); got != http.StatusOK {
		t.Errorf("the token of an expired lease gets %d; nobody has ended it", got)
	}
	w.guide(t, "sweeper")
	began := time.Now()
	out := w.guide(t, "sweep")
	took := time.Since(began)
	dead := w.untilDead(t, token, 5*time.Second)
	if got := w.get(t, longer); got != http.StatusOK {
		t.Errorf("a lease that lives on gets %d after the sweep", got)
	}
	t.Logf("remit sweep said %q after %.0f ms; first refused request %.0f ms after it began", strings.TrimSpace(out), took.Seconds()*1e3, dead.Sub(began).Seconds()*1e3)
	for in, kinds := range map[string]string{nsTarget: "roles,rolebindings", "remit-leases": "serviceaccounts"} {
		ends := w.admin(t, "-n", in, "get", kinds, "-l", "remit.internal/installation=main1", "-o", `jsonpath={.items[*].metadata.labels.remit\.internal/expires}`)
		for _, end := range strings.Fields(ends) {
			if n, err := strconv.ParseInt(end, 10, 64); err != nil || n < began.Unix() {
				t.Errorf("left in %s: something that ended at %s", in, end)
			}
		}
		if len(strings.Fields(ends)) == 0 {
			t.Errorf("in %s nothing is left of the leases that live on", in)
		}
	}
	w.sweeperRights(t)
	w.serve(t)
	w.fit(t)
	if r := w.remit(t, "grant", "list"); r.code != 0 || !strings.Contains(r.out, "expired") && !strings.Contains(r.out, "its launch ended") {
		t.Errorf("back again: %s", r)
	}
	w.sweptWhileDead(t)
}

// sweptWhileDead has the sweeper run, as in the cluster, when Remit dies and does not come back.
func (w *world) sweptWhileDead(t *testing.T) {
	t.Helper()
	w.ready(t)
	sweeper := exec.Command(shared.remit, "sweep", "kubernetes", "--kubeconfig="+filepath.Join(w.etc, "sweeper.kubeconfig"),
		"--namespaces="+nsTarget, "--installation=main1", "--every=1s")
	must(t, sweeper.Start())
	defer func() {
		_ = sweeper.Process.Signal(os.Interrupt)
		_ = sweeper.Wait()
	}()
	token, granted := w.token(t, "--ttl", "6s")
	w.served.end(os.Kill)
	dead := w.untilDead(t, token, 30*time.Second)
	t.Logf("serviceaccount, Remit dead, a sweeper every second: a lease of 6 s was dead %.1f s after it was granted", dead.Sub(granted).Seconds())
	if d := dead.Sub(granted); d < 5*time.Second || d > 12*time.Second {
		t.Errorf("a lease of 6 s lived %s", d)
	}
	w.serve(t)
	w.fit(t)
}

// TestNobodyEndsIt is the worst case of mode serviceaccount, in real time: Remit dies right after minting, there is no sweeper,
// and the token's own end counts.
func TestNobodyEndsIt(t *testing.T) {
	if os.Getenv("REMIT_LONG") == "" {
		t.Skip("takes eleven minutes: REMIT_LONG=1 runs it")
	}
	w := newWorld(t, option{mode: "serviceaccount"})
	w.allowed(t)
	token, granted := w.token(t, "--ttl", "6s")
	w.served.end(os.Kill)
	var dead time.Time
	for end := granted.Add(700 * time.Second); dead.IsZero() && time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if w.get(t, token) != http.StatusOK {
			dead = time.Now()
		}
	}
	if dead.IsZero() {
		t.Fatal("the token lives on")
	}
	t.Logf("serviceaccount, Remit dead, no sweeper: a lease of 6 s was dead %.1f s after it was granted", dead.Sub(granted).Seconds())
	if d := dead.Sub(granted); d < 600*time.Second || d > 671*time.Second {
		t.Errorf("it lived %s; the answer says 670 s", d)
	}
}

// sweeperRights tries what the sweeper's account has no need of.
func (w *world) sweeperRights(t *testing.T) {
	t.Helper()
	w.admin(t, "-n", nsTarget, "create", "role", "company-role", "--verb=get", "--resource=pods")
	w.admin(t, "-n", "remit-leases", "create", "serviceaccount", "remit-main1-other")
	config := filepath.Join(w.etc, "sweeper.kubeconfig")
	for _, args := range []string{
		"-n " + nsTarget + " get secrets", "-n " + nsTarget + " get deployments", "-n " + nsTarget + " delete deployment " + app,
		"-n " + nsTarget + " delete role company-role", "-n " + nsOther + " get roles", "-n kube-system get rolebindings",
		"-n " + nsTarget + " create role remit-x --verb=get --resource=pods",
		"-n " + nsTarget + " create rolebinding remit-x --clusterrole=cluster-admin --user=x",
		"-n remit-leases create token remit-main1-other", "-n remit create token broker", "get nodes", "get clusterroles",
		"get validatingadmissionpolicies",
	} {
		r := w.command(t, []string{"HOME=" + w.dir}, append([]string{shared.kubectl, "--kubeconfig", config}, strings.Fields(args)...)...)
		if r.code == 0 || !strings.Contains(strings.ToLower(r.errs), "forbidden") {
			t.Errorf("the sweeper: %s", r)
		}
	}
}
