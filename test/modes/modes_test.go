// SPDX-License-Identifier: Apache-2.0

package modes_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/evidencetest"
)

// The story of the demo in the modes that the demo does not have, and what happens when things go wrong.

func TestJWT(t *testing.T) {
	w := newWorld(t, option{mode: "jwt"})
	w.forged(t, http.StatusForbidden)
	w.story(t)
	w.endsWithoutRemit(t)
}

func TestWebhook(t *testing.T) {
	w := newWorld(t, option{mode: "webhook", authorization: "authorization.yaml"})
	w.admin(t, "-n", nsTarget, "delete", "rolebinding", "remit-broker", "remit-sweeper") // nothing is made at the cluster
	w.forged(t, http.StatusForbidden)
	w.story(t)
	w.svids(t)
	w.closedWithoutRemit(t)
	w.remembers(t)
}

func TestServiceAccountUnderTheWebhook(t *testing.T) {
	w := newWorld(t, option{mode: "serviceaccount", authorization: "authorization.yaml"})
	w.story(t)
	w.closedWithoutRemit(t)
}

func (w *world) story(t *testing.T) {
	t.Helper()
	w.denied(t)
	w.allowed(t)
	w.nothingElse(t)
	w.observed(t)
	w.ends(t)
	w.verified(t)
	w.suspended(t)
	if r := w.remit(t, "agent", "reinstate", "deploy", "--reason", "the test goes on"); r.code != 0 {
		t.Fatal(r)
	}
}

// start begins a run about the image, which names a scan that may not exist yet.
func (w *world) start(t *testing.T, scan string) {
	t.Helper()
	r := w.remit(t, "run", "start", "deploy", "--param", "image="+shared.image, "--param", "scan="+scan, "-o", "json")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.out), &run); r.code != 0 || err != nil {
		t.Fatal(r)
	}
	w.run = string(run.ID)
}

// ready begins a run whose scan is there.
func (w *world) ready(t *testing.T) {
	t.Helper()
	scan := "scan-" + string(remit.NewLeaseID())
	w.start(t, scan)
	w.scan(t, scan)
}

func (w *world) scan(t *testing.T, id string) {
	t.Helper()
	scan := evidencetest.Scan{ID: id, Image: app, Subjects: []remit.Digest{shared.digest}, Finished: time.Now(),
		Findings: []evidencetest.Finding{{ID: "CVE-2026-0001", Severity: "low"}}}
	envelope, err := shared.scanner.Sign(scan.Statement())
	must(t, err)
	file := filepath.Join(w.dir, id+".json")
	must(t, os.WriteFile(file, envelope, 0o644))
	if r := w.remit(t, "evidence", "add", file, "--source", "trivy-ci"); r.code != 0 {
		t.Fatal(r)
	}
}

func (w *world) manifest(t *testing.T, name, namespace, image string) string {
	path := filepath.Join(w.dir, "manifest-"+string(remit.NewLeaseID())+".yaml")
	must(t, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {containers: [{name: main, image: "%[3]s"}]}
`, name, namespace, image), 0o644))
	return path
}

func (w *world) denied(t *testing.T) {
	t.Helper()
	w.start(t, "scan-of-nothing")
	r := w.kubectl(t, "apply", "-f", w.manifest(t, app, nsTarget, shared.image))
	if r.code == 0 || !strings.Contains(r.errs, "evidence_missing") {
		t.Errorf("without a scan: %s", r)
	}
	if got := w.admin(t, "-n", nsTarget, "get", "deployments", "-o", "name"); got != "" {
		t.Errorf("there is %s", got)
	}
}

func (w *world) allowed(t *testing.T) {
	t.Helper()
	w.ready(t)
	for range 2 { // create, then patch
		if r := w.kubectl(t, "apply", "-f", w.manifest(t, app, nsTarget, shared.image)); r.code != 0 {
			t.Fatal(r)
		}
	}
	got := w.admin(t, "-n", nsTarget, "get", "deployment", app, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	if got != shared.image {
		t.Errorf("the administrator sees %q", got)
	}
}

func (w *world) nothingElse(t *testing.T) {
	t.Helper()
	for what, args := range map[string][]string{
		"another image":     {"apply", "-f", w.manifest(t, app, nsTarget, shared.badImage)},
		"another name":      {"apply", "-f", w.manifest(t, "till", nsTarget, shared.image)},
		"another namespace": {"apply", "-f", w.manifest(t, app, nsOther, shared.image)},
		"delete":            {"-n", nsTarget, "delete", "deployment", app},
		"secrets":           {"-n", nsTarget, "get", "secrets"},
		"scale":             {"-n", nsTarget, "scale", "deployment", app, "--replicas=3"},
	} {
		if r := w.kubectl(t, args...); r.code == 0 || !strings.Contains(strings.ToLower(r.errs), "forbidden") {
			t.Errorf("%s: %s", what, r)
		}
	}
	if got := w.admin(t, "get", "deployments", "-A", "-o", "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}"); got != nsTarget+"/"+app {
		t.Errorf("the cluster has %s", got)
	}
}

// observed waits for what the API server tells of: joined by the credential's id, which the lease has on record.
func (w *world) observed(t *testing.T) {
	t.Helper()
	began := time.Now()
	var created, refused bool
	var last string
	for (!created || !refused) && time.Since(began) < 20*time.Second {
		time.Sleep(200 * time.Millisecond)
		r := w.remit(t, "ledger", "list", "--kind", "action", "--limit", "1000", "-o", "json")
		var list struct {
			Items []struct {
				Event struct {
					Grant string        `json:"grant"`
					Data  remit.Outcome `json:"data"`
				} `json:"event"`
			} `json:"items"`
		}
		if err := json.Unmarshal([]byte(r.out), &list); r.code != 0 || err != nil {
			t.Fatal(r)
		}
		last = r.out
		for _, i := range list.Items {
			e := i.Event
			joined := strings.HasPrefix(e.Grant, "grant-") && e.Data.Lease != "" && strings.HasPrefix(e.Data.Credential, "JTI=") &&
				strings.HasPrefix(e.Data.Resource, nsTarget+"/deployments.apps")
			created = created || joined && e.Data.Status == http.StatusCreated && e.Data.Allowed && e.Data.Verb == "create"
			refused = refused || joined && e.Data.Status == http.StatusForbidden && !e.Data.Allowed
		}
	}
	if !created || !refused {
		t.Errorf("after %s: created %v, refused %v\n%s", time.Since(began), created, refused, last)
	}
}

func (w *world) ends(t *testing.T) {
	t.Helper()
	token, granted := w.token(t, "--ttl", "6s")
	dead := w.untilDead(t, token, 20*time.Second)
	t.Logf("%s: asked for 6 s, dead %.2f s after the grant was there", w.mode, dead.Sub(granted).Seconds())
	if d := dead.Sub(granted); d < 4*time.Second || d > 8*time.Second {
		t.Errorf("a credential for 6 s lived %s", d)
	}
	token, _ = w.token(t)
	w.kills(t, token, "run", "finish", w.run)
}

func (w *world) suspended(t *testing.T) {
	t.Helper()
	w.ready(t)
	token, _ := w.token(t)
	w.kills(t, token, "agent", "suspend", "deploy", "--reason", "the test says so")
	if r := w.kubectl(t, "-n", nsTarget, "get", "deployment", app); r.code == 0 {
		t.Errorf("a suspended agent got through: %s", r)
	}
}

// kills measures from typing a command to the first refused request of a credential in use, and from the command's end.
func (w *world) kills(t *testing.T, token string, args ...string) {
	t.Helper()
	dead := make(chan time.Time, 1)
	began := time.Now()
	go func() { dead <- w.untilDead(t, token, 10*time.Second) }()
	if r := w.remit(t, args...); r.code != 0 {
		t.Fatal(r)
	}
	ended := time.Now()
	at := <-dead
	t.Logf("%s: remit %s %s took %.0f ms; first refused request %.0f ms after it was typed", w.mode, args[0], args[1],
		ended.Sub(began).Seconds()*1e3, at.Sub(began).Seconds()*1e3)
	if at.Sub(ended) > time.Second {
		t.Errorf("the credential worked for %s after remit %s %s had ended", at.Sub(ended), args[0], args[1])
	}
}

// token gets a bare token as the agent, which no agent would show around, and sees it work. A lease ends with its launch, so the
// process that asked stays until the test is over.
func (w *world) token(t *testing.T, more ...string) (string, time.Time) {
	t.Helper()
	argv := append([]string{"--dir", w.home, "exec", "--run", w.run, "--as", "agent/deploy", "--for", "apply", "--",
		shared.self, holdCommand, shared.remit, "credential", "token", "--for", "apply"}, more...)
	cmd := exec.Command(shared.remit, argv...)
	cmd.Stderr, cmd.WaitDelay = os.Stderr, 5*time.Second
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		over := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		over.Stop()
	})
	token, err := bufio.NewReader(out).ReadString('\n')
	if token = strings.TrimSpace(token); err != nil || token == "" {
		t.Fatalf("no token: %v", err)
	}
	granted := time.Now()
	if got := w.get(t, token); got != http.StatusOK {
		t.Fatalf("the fresh credential does not work: %d", got)
	}
	return token, granted
}

// get asks the API server for the granted deployment over a kept connection.
func (w *world) get(t *testing.T, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.cluster.URL+"/apis/apps/v1/namespaces/"+nsTarget+"/deployments/"+app, nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := w.client.Do(req)
	if err != nil {
		t.Errorf("the API server does not answer: %v", err)
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func (w *world) untilDead(t *testing.T, token string, limit time.Duration) time.Time {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if w.get(t, token) != http.StatusOK {
			return time.Now()
		}
	}
	t.Errorf("the credential still works after %s", limit)
	return time.Now()
}
