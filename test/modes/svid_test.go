// SPDX-License-Identifier: Apache-2.0

package modes_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/identity/issuer"
)

const fetchCommand = "fetch-jwt-svid"

// fetchJWTSVID is what this binary does when it is launched as the agent: it asks the Workload API as any SPIFFE client does.
func fetchJWTSVID(audience string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(svid.Marshal())
	return 0
}

const holdCommand = "hold"

// hold is what this binary does when it is launched as an agent that works on with what it got: it runs a command, passes on
// what that prints, and stays until its input ends.
func hold(argv []string) int {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec // the test's own command
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// svid fetches a JWT-SVID as the agent.
func (w *world) svid(t *testing.T, audience string) result {
	return w.agent(t, shared.self, fetchCommand, audience)
}

// svids is S1: an agent gets no JWT-SVID for the cluster, and with the one that it gets it is nobody there.
func (w *world) svids(t *testing.T) {
	t.Helper()
	w.ready(t)
	if r := w.svid(t, target); r.code == 0 || !strings.Contains(r.errs, "PermissionDenied") {
		t.Errorf("a JWT-SVID for the cluster's audience: %s", r)
	}
	r := w.svid(t, "https://reports.company.com")
	if r.code != 0 {
		t.Fatal(r)
	}
	if got := w.get(t, strings.TrimSpace(r.out)); got != http.StatusUnauthorized {
		t.Errorf("the API server answers %d to an agent's JWT-SVID", got)
	}
	// An agent's file that lists the cluster's audience is refused.
	file := filepath.Join(w.home, "config", "agents.yaml")
	before, err := os.ReadFile(file)
	must(t, err)
	changed := strings.Replace(string(before), "audiences: [", "audiences: ["+target+", ", 1)
	must(t, os.WriteFile(file, []byte(changed), 0o644))
	if r := w.remit(t, "apply"); r.code == 0 || !strings.Contains(r.errs, "must trust grants only") {
		t.Errorf("an agent that lists the cluster's audience: %s", r)
	}
	must(t, os.WriteFile(file, before, 0o644))
}

// forged signs with copies of the server's own keys what the server would never sign. noLease is the answer to a good token
// that no lease stands behind.
func (w *world) forged(t *testing.T, noLease int) {
	t.Helper()
	keys := filepath.Join(w.dir, "copied-keys")
	must(t, os.Mkdir(keys, 0o700))
	for _, name := range []string{"grant.json", "root.json", "issuing.json", "jwt.json"} {
		b, err := os.ReadFile(filepath.Join(w.home, "keys", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(keys, name), b, 0o600))
	}
	iss := "https://" + w.https
	grants, err := issuer.NewGrantIssuer(iss+"/grants", issuer.KeysConfig{Name: "grant", Dir: keys})
	must(t, err)
	td := spiffeid.RequireTrustDomainFromString("company.com")
	authority, err := issuer.New(issuer.Config{TrustDomain: td, Dir: keys, Issuer: iss})
	must(t, err)
	svidKeys, err := issuer.OpenKeys(issuer.KeysConfig{Name: "jwt", Dir: keys})
	must(t, err)
	now := time.Now()
	claims := func(change func(c, r map[string]any)) map[string]any {
		id := string(remit.NewLeaseID())
		r := map[string]any{"lease": id, "name": "remit-main1-" + id, "grant": "grant-x", "groups": []string{"remit:agents", "remit:lease:remit-main1-" + id}}
		c := map[string]any{"iss": iss + "/grants", "aud": []string{target}, "sub": "spiffe://company.com/agent/deploy", "jti": id,
			"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(4 * time.Minute).Unix(), "remit": r}
		change(c, r)
		return c
	}
	sign := func(k interface{ Sign(any) (string, error) }, change func(c, r map[string]any)) string {
		token, err := k.Sign(claims(change))
		must(t, err)
		return token
	}
	svid, _, err := authority.JWTSVID(spiffeid.RequireFromPath(td, "/agent/deploy"), []string{target}, time.Minute)
	must(t, err)
	for what, c := range map[string]struct {
		token string
		want  int
	}{
		"no lease": {sign(grants, func(_, _ map[string]any) {}), noLease},
		"ten minutes": {sign(grants, func(c, _ map[string]any) {
			c["exp"] = now.Add(10 * time.Minute).Unix()
		}), http.StatusUnauthorized},
		"another cluster's": {sign(grants, func(c, _ map[string]any) { c["aud"] = []string{"another-cluster"} }), http.StatusUnauthorized},
		"system:masters": {sign(grants, func(_, r map[string]any) {
			r["groups"] = []string{"remit:agents", "system:masters"}
		}), http.StatusUnauthorized},
		"JWT-SVID":                        {svid, http.StatusUnauthorized},
		"the SVID issuer's name and keys": {sign(svidKeys, func(c, _ map[string]any) { c["iss"] = iss }), http.StatusUnauthorized},
		"the SVID issuer's keys":          {sign(svidKeys, func(_, _ map[string]any) {}), http.StatusUnauthorized},
	} {
		if got := w.get(t, c.token); got != c.want {
			t.Errorf("%s: the API server answers %d, not %d", what, got, c.want)
		}
	}
}
