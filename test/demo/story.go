// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"remit"
	"remit/test/story"
)

// deniedWithoutScan asks before any scan exists.
func (s *demo) deniedWithoutScan(ctx context.Context) error {
	if err := s.startRun(ctx); err != nil {
		return err
	}
	s.Ask("kubectl apply of %s in %s, claiming %s", s.image, s.namespace, s.scan)
	r := s.kubectlAsAgent(ctx, "apply", "-f", s.manifest("good", s.app, s.namespace, s.image))
	return s.expectDenied(ctx, r, "evidence_missing")
}

// deniedOtherScan stores a properly signed scan of another image under the id that the run names.
func (s *demo) deniedOtherScan(ctx context.Context) error {
	if err := s.addScan(ctx, s.scan, s.otherDigest); err != nil {
		return err
	}
	s.Ask("the same, now that %s exists, signed, about another image", s.scan)
	r := s.kubectlAsAgent(ctx, "apply", "-f", s.manifest("good", s.app, s.namespace, s.image))
	return s.expectDenied(ctx, r, "evidence_subject")
}

// allowed adds the right scan, applies, and looks at the cluster with the administrator's own eyes.
func (s *demo) allowed(ctx context.Context) error {
	s.scan = s.Word("scan")
	if err := s.finishRun(ctx); err != nil {
		return err
	}
	if err := s.startRun(ctx); err != nil {
		return err
	}
	if err := s.addScan(ctx, s.scan, s.digest); err != nil {
		return err
	}
	s.Ask("kubectl apply of %s in %s with %s", s.image, s.namespace, s.scan)
	r := s.kubectlAsAgent(ctx, "apply", "-f", s.manifest("good", s.app, s.namespace, s.image))
	if r.Code != 0 {
		return fmt.Errorf("not allowed: %s", r)
	}
	s.Told("allow: %s", strings.TrimSpace(r.Out), r.Took)
	got := s.adminKubectl(ctx, "-n", s.namespace, "get", "deployment", s.app, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	if got.Out != s.image {
		return fmt.Errorf("the administrator sees %q, not %s", got.Out, s.image)
	}
	s.Told("the administrator sees the deployment with exactly that image", "", got.Took)
	return nil
}

// nothingElse tries, each with a fresh credential, what was not decided.
func (s *demo) nothingElse(ctx context.Context) error {
	tries := []struct{ what, file string }{
		{"another image", s.manifest("other-image", s.app, s.namespace, s.otherImage)},
		{"another name", s.manifest("other-name", s.app+"-x", s.namespace, s.image)},
		{"another namespace", s.manifest("other-namespace", s.app, s.otherNamespace, s.image)},
	}
	for _, t := range tries {
		s.Ask("kubectl apply of %s with the granted credential", t.what)
		r := s.kubectlAsAgent(ctx, "apply", "-f", t.file)
		if r.Code == 0 || !strings.Contains(strings.ToLower(r.Errs), "forbidden") {
			return fmt.Errorf("%s was not refused by the cluster: %s", t.what, r)
		}
		s.Told("refused by the cluster: %s", story.LastLine(r.Errs), r.Took)
	}
	return nil
}

// executed waits for the API server's audit events: the apply and the refused tries, each joined to its grant.
func (s *demo) executed(ctx context.Context) error {
	if os.Getenv("CLUSTER") == "own" {
		s.Told("%s", "skipped: your API server does not send audit events to this Remit", 0)
		return nil
	}
	s.Ask("remit ledger list --kind action, for the deployment")
	want := map[string]bool{"201": false, "403": false}
	began := time.Now()
	for end := began.Add(15 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		r := s.Remit(ctx, "ledger", "list", "--kind", "action", "--limit", "1000", "-o", "json")
		var list struct {
			Items []struct {
				Event struct {
					Grant string        `json:"grant"`
					Data  remit.Outcome `json:"data"`
				} `json:"event"`
			} `json:"items"`
		}
		if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
			return fmt.Errorf("%s", r)
		}
		for _, e := range list.Items {
			code := fmt.Sprint(e.Event.Data.Status)
			if _, asked := want[code]; asked && e.Event.Grant != "" && strings.Contains(e.Event.Data.Resource, s.app) {
				want[code] = true
			}
		}
		if want["201"] && want["403"] {
			s.Told("the API server told of %s", fmt.Sprintf("%d acts, each joined to its grant: the create (201) and the refused ones (403)", len(list.Items)), time.Since(began))
			return nil
		}
	}
	return fmt.Errorf("the acts did not come back: %v", want)
}

// ends holds a short credential over its end and sees it die.
func (s *demo) ends(ctx context.Context) error {
	s.Ask("a credential for 6 seconds")
	token, err := s.token("--ttl", "6s")
	if err != nil {
		return err
	}
	granted := time.Now()
	if ok, err := s.usable(ctx, token); err != nil || !ok {
		return fmt.Errorf("the fresh credential does not work: %w", errors.Join(err, errors.New("refused")))
	}
	dead, err := s.untilDead(ctx, token, 20*time.Second)
	if err != nil {
		return err
	}
	s.Told("works, and is dead %s", fmt.Sprintf("%.1f s after it was granted", dead.Sub(granted).Seconds()), 0)
	s.Ask("remit run finish while a credential is live")
	if token, err = s.token(); err != nil {
		return err
	}
	if ok, err := s.usable(ctx, token); err != nil || !ok {
		return fmt.Errorf("the fresh credential does not work: %w", errors.Join(err, errors.New("refused")))
	}
	began := time.Now()
	if err := s.finishRun(ctx); err != nil {
		return err
	}
	if dead, err = s.untilDead(ctx, token, 5*time.Second); err != nil {
		return err
	}
	s.Told("the run ended and the credential with it, first refused request after", "", dead.Sub(began))
	return nil
}

// suspended measures from the command to the first refused request.
func (s *demo) suspended(ctx context.Context) error {
	if err := s.startRun(ctx); err != nil {
		return err
	}
	token, err := s.token()
	if err != nil {
		return err
	}
	if ok, err := s.usable(ctx, token); err != nil || !ok {
		return fmt.Errorf("the fresh credential does not work: %w", errors.Join(err, errors.New("refused")))
	}
	s.Ask("remit agent suspend deploy, with a live credential")
	type outcome struct {
		at  time.Time
		err error
	}
	dead := make(chan outcome, 1)
	began := time.Now()
	go func() {
		at, err := s.untilDead(ctx, token, 10*time.Second)
		dead <- outcome{at, err}
	}()
	r := s.Remit(ctx, "agent", "suspend", "deploy", "--reason", "the demo says so")
	o := <-dead
	if r.Code != 0 || o.err != nil {
		return fmt.Errorf("suspend: %s %w", r, errors.Join(o.err))
	}
	s.Told("%s", strings.TrimSpace(r.Out), r.Took)
	s.Told("first refused request after the command was typed", "", o.at.Sub(began))
	s.Ask("another credential, suspended")
	r = s.kubectlAsAgent(ctx, "get", "deployments")
	if r.Code == 0 {
		return fmt.Errorf("a suspended agent got through: %s", r)
	}
	s.Told("refused: %s", story.LastLine(r.Errs), r.Took)
	return nil
}

// expectDenied checks that nothing was applied and that Remit's reason is the expected one, as remit why tells it.
func (s *demo) expectDenied(ctx context.Context, r story.Result, code string) error {
	if r.Code == 0 || !strings.Contains(r.Errs, code) {
		return fmt.Errorf("expected a denial with %s: %s", code, r)
	}
	dec := decisionPattern.FindString(r.Errs)
	why := s.Remit(ctx, "why", dec)
	if why.Code != 0 || !strings.Contains(why.Out, s.scan) {
		return fmt.Errorf("remit why %s does not name the scan: %s", dec, why)
	}
	s.Told("deny: %s", code, r.Took)
	for line := range strings.Lines(why.Out) {
		fmt.Print("      ", line)
	}
	got := s.adminKubectl(ctx, "-n", s.namespace, "get", "deployment", s.app)
	if got.Code == 0 {
		return errors.New("the deployment exists all the same")
	}
	return nil
}

// token gets a credential as the agent and returns the bare token, which no agent would show around.
func (s *demo) token(more ...string) (string, error) {
	args := append([]string{s.Path("bin", "remit"), "credential", "token", "--for", "apply"}, more...)
	token, err := s.holdAsAgent(args...)
	if err == nil {
		s.minted = append(s.minted, token)
	}
	return token, err
}

// usable asks the API server for the granted deployment with the token, over a kept connection.
func (s *demo) usable(ctx context.Context, token string) (bool, error) {
	url := fmt.Sprintf("%s/apis/apps/v1/namespaces/%s/deployments/%s", s.cluster.server, s.namespace, s.app)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := s.cluster.client.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	switch res.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusForbidden, http.StatusUnauthorized:
		return false, nil
	}
	return false, fmt.Errorf("the API server answered %s", res.Status)
}

// untilDead uses the token until it is refused.
func (s *demo) untilDead(ctx context.Context, token string, limit time.Duration) (time.Time, error) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		ok, err := s.usable(ctx, token)
		if err != nil {
			return time.Time{}, err
		}
		if !ok {
			return time.Now(), nil
		}
	}
	return time.Time{}, fmt.Errorf("the credential still works after %s", limit)
}

// cluster is the API server as its administrator sees it.
type cluster struct {
	kubeconfig, server, ca string
	client                 *http.Client
}

func (s *demo) readCluster(ctx context.Context) error {
	r := s.adminKubectl(ctx, "config", "view", "--raw", "--minify", "--flatten", "-o", "json")
	var view struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
	}
	if err := json.Unmarshal([]byte(r.Out), &view); err != nil || len(view.Clusters) != 1 {
		return fmt.Errorf("read the kubeconfig: %s %w", r, errors.Join(err))
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(view.Clusters[0].Cluster.CA)
	s.cluster.server, s.cluster.ca = view.Clusters[0].Cluster.Server, string(view.Clusters[0].Cluster.CA)
	s.cluster.client = &http.Client{Timeout: 10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	return nil
}
