// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/identity/issuer"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

// jwtFor fetches a JWT-SVID of agent/deploy from the Workload API.
func (i *installation) jwtFor(audience string) (string, error) {
	ctx, cancel := context.WithTimeout(i.process.ctx, 10*time.Second)
	defer cancel()
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, Subject: spiffeid.RequireFromString("spiffe://company.com/agent/deploy")},
		workloadapi.WithAddr("unix://"+i.path("remit", "run", "workload.sock")))
	if err != nil {
		return "", err
	}
	return svid.Marshal(), nil
}

// issuerURL is the aud that assertions must have.
func (i *installation) issuerURL() string {
	return strings.Replace("https://"+i.https, "127.0.0.1", "localhost", 1)
}

// asserted asks with a JWT-SVID and no client certificate.
func (i *installation) asserted(a *agent, assertion string) *answer {
	i.t.Helper()
	t := a.http.Transport.(*http.Transport).Clone()
	t.TLSClientConfig.GetClientCertificate, t.TLSClientConfig.Certificates = nil, nil
	defer t.CloseIdleConnections()
	bare := &agent{i: i, id: a.id, name: a.name, http: &http.Client{Transport: t, Timeout: 20 * time.Second}}
	got, err := bare.ask("", url.Values{"client_assertion_type": {assertionType}, "client_assertion": {assertion}, "authorization_details": {details(i, nil)}})
	i.must(err)
	return got
}

// decisions counts the recorded decisions.
func (i *installation) decisions() int {
	i.t.Helper()
	return len(i.recorded())
}

// recorded lists the recorded decisions, oldest first.
func (i *installation) recorded() (out []remit.Decision) {
	i.t.Helper()
	for after := ""; ; {
		var list api.List[api.Entry]
		i.must(json.Unmarshal([]byte(i.run("ledger", "list", "--kind", "decision", "--limit", "1000", "--after", after, "-o", "json")), &list))
		for _, e := range list.Items {
			var event struct {
				Data remit.Decision `json:"data"`
			}
			i.must(json.Unmarshal(e.Event, &event))
			out = append(out, event.Data)
		}
		if after = list.Next; after == "" {
			return out
		}
	}
}

// forge changes a token's header and signs it, or not, with what an attacker has.
func forge(t *testing.T, token string, header map[string]string, sign func(signed string) []byte) string {
	t.Helper()
	parts := strings.Split(token, ".")
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	signed := base64.RawURLEncoding.EncodeToString(h) + "." + parts[1]
	return signed + "." + base64.RawURLEncoding.EncodeToString(sign(signed))
}

// TestAssertionsRefused: every JWT-SVID that is not a fresh one of ours for us is 401 invalid_client, and writes nothing.
func TestAssertionsRefused(t *testing.T) {
	i := install(t, setting{})
	i.serve()
	a, err := i.become("deploy")
	i.must(err)
	good, err := i.jwtFor(i.issuerURL())
	i.must(err)
	if got := i.asserted(a, good); got.Status == http.StatusUnauthorized {
		t.Fatalf("the good assertion was refused: %s", got)
	}
	before := i.decisions()
	if before != 1 {
		t.Fatalf("%d decisions after one question", before)
	}
	tok, err := jwt.ParseSigned(good, []jose.SignatureAlgorithm{jose.ES256})
	i.must(err)
	kid := tok.Headers[0].KeyID
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	i.must(err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	i.must(err)
	wrong, err := i.jwtFor("somebody-else")
	i.must(err)
	expired := i.genuine(a.id, time.Second)
	time.Sleep(2 * time.Second)
	for name, assertion := range map[string]string{
		"replayed":           good,
		"for another":        wrong,
		"other trust domain": signJWT(t, key, kid, "spiffe://company.org/agent/deploy", i.issuerURL(), time.Minute),
		"own key, our kid":   signJWT(t, key, kid, a.id, i.issuerURL(), time.Minute),
		"expired":            expired,
		"alg none":           forge(t, fresh(t, i), map[string]string{"alg": "none", "kid": kid, "typ": "JWT"}, func(string) []byte { return nil }),
		"HS256":              forgeHMAC(t, fresh(t, i), kid, der),
		"a bit flipped":      flipped(fresh(t, i)),
		"nothing":            "a.b.c",
	} {
		got := i.asserted(a, assertion)
		if got.Status != http.StatusUnauthorized || got.Error != "invalid_client" || got.Receipt != nil {
			t.Errorf("%s: %s", name, got)
		}
	}
	if n := i.decisions(); n != before {
		t.Errorf("%d decisions were recorded for callers that proved nothing", n-before)
	}
	// What genuine makes is what the authority makes: in time it counts.
	if got := i.asserted(a, i.genuine(a.id, time.Minute)); got.Status == http.StatusUnauthorized {
		t.Errorf("an assertion of the authority's own key was refused: %s", got)
	}
}

func fresh(t *testing.T, i *installation) string {
	t.Helper()
	token, err := i.jwtFor(i.issuerURL())
	i.must(err)
	return token
}

func flipped(token string) string {
	at := strings.LastIndexByte(token, '.') + 10
	c := byte('A')
	if token[at] == c {
		c = 'B'
	}
	return token[:at] + string(c) + token[at+1:]
}

func forgeHMAC(t *testing.T, token, kid string, secret []byte) string {
	t.Helper()
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret}, (&jose.SignerOptions{}).WithHeader("kid", kid).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func signJWT(t *testing.T, key *ecdsa.PrivateKey, kid, sub, aud string, lives time.Duration) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	out, err := jwt.Signed(s).Claims(jwt.Claims{Subject: sub, Audience: jwt.Audience{aud}, IssuedAt: jwt.NewNumericDate(now),
		Expiry: jwt.NewNumericDate(now.Add(lives)), ID: rand.Text()}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// genuine signs a JWT-SVID for this server with a copy of the authority's own keys.
func (i *installation) genuine(sub string, ttl time.Duration) string {
	i.t.Helper()
	dir, err := os.MkdirTemp(i.dir, "keys-")
	i.must(err)
	files, err := os.ReadDir(i.path("remit", "keys"))
	i.must(err)
	for _, f := range files {
		b, err := os.ReadFile(i.path("remit", "keys", f.Name()))
		i.must(err)
		i.must(os.WriteFile(filepath.Join(dir, f.Name()), b, 0o600))
	}
	authority, err := issuer.New(issuer.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("company.com"), Dir: dir, Issuer: i.issuerURL(),
		Log: slog.New(slog.DiscardHandler)})
	i.must(err)
	token, _, err := authority.JWTSVID(spiffeid.RequireFromString(sub), []string{i.issuerURL()}, ttl)
	i.must(err)
	return token
}

// TestRunTokensRefused: a run token counts only in its holder's hands, in its run, at its stage.
func TestRunTokensRefused(t *testing.T) {
	// Else the first stolen token suspends its thief.
	i := install(t, setting{remit: func(s string) string { return s + "\nfindings: {suspensions_an_hour: 0}\n" }})
	i.serve()
	i.must(i.addScan(scanID, i.image))
	deploy, err := i.become("deploy")
	i.must(err)
	other, err := i.become("other")
	i.must(err)
	one, err := i.startRun()
	i.must(err)
	two, err := i.startRun()
	i.must(err)
	txn, err := deploy.runToken(one.ID)
	i.must(err)
	second, err := deploy.runToken(two.ID)
	i.must(err)
	var stolen api.Token // issued for agent/deploy, bound to a certificate that agent/deploy does not have
	i.must(i.call("/v1/runs/"+string(one.ID)+"/token", api.TokenRequest{Agent: "agent/deploy", Thumbprint: other.thumbprint()}, &stolen))
	otherTxn, err := other.runToken(one.ID)
	i.must(err)
	var lent api.Token // issued for agent/other, bound to agent/deploy's certificate
	i.must(i.call("/v1/runs/"+string(one.ID)+"/token", api.TokenRequest{Agent: "agent/other", Thumbprint: deploy.thumbprint()}, &lent))
	look := map[string]any{"type": "kubernetes.get", "image": nil}
	for _, tt := range []struct {
		name string
		by   *agent
		txn  string
		more map[string]any
		want remit.ReasonCode
	}{
		{"the right one, at a target that mints nothing", deploy, txn, nil, remit.ReasonTarget},
		{"no token", deploy, "", nil, remit.ReasonNoRun},
		{"another agent's, with its own SVID", other, txn, look, remit.ReasonRunToken},
		{"another agent's, the other way", deploy, otherTxn, nil, remit.ReasonRunToken},
		{"bound to another certificate", deploy, stolen.Token, nil, remit.ReasonRunToken},
		{"another agent's, bound to this certificate", deploy, lent.Token, nil, remit.ReasonRunToken},
		{"a bit flipped", deploy, flipped(txn), nil, remit.ReasonRunToken},
		{"of another run than stated", deploy, second, map[string]any{"run": string(one.ID)}, remit.ReasonRunMismatch},
		{"another stage stated", deploy, txn, map[string]any{"stage": "check"}, remit.ReasonRunMismatch},
		{"what the stage does not permit", deploy, txn, look, remit.ReasonNoPermission},
		{"another name", deploy, txn, map[string]any{"name": "another"}, remit.ReasonArgument},
		{"an argument that is not named", deploy, txn, map[string]any{"force": true}, remit.ReasonArgument},
	} {
		got, err := tt.by.grant(tt.txn, tt.more)
		i.must(err)
		if got.Error != "access_denied" || !got.has(string(tt.want)) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	for name, txn := range map[string]string{"": txn, "AuthZEN, another certificate's": stolen.Token, "AuthZEN, another agent's": otherTxn} {
		if ok, err := deploy.evaluate(txn); err != nil || ok != (name == "") {
			t.Errorf("%s: %v %v", name, ok, err)
		}
	}
	i.must(i.call("/v1/runs/"+string(one.ID)+"/advance", api.AdvanceRun{To: "check"}, nil))
	if got, err := deploy.grant(txn, nil); err != nil || got.Error != "access_denied" {
		t.Errorf("in the next stage: %v %v", got, err)
	}
	i.must(i.call("/v1/runs/"+string(two.ID)+"/finish", nil, nil))
	if got, err := deploy.grant(second, nil); err != nil || !got.has("run_ended") && !got.has("run_token_invalid") {
		t.Errorf("in a finished run: %v %v", got, err)
	}
	i.suspendedGetsNothing(deploy, txn)
	i.agreesWithOPA()
	i.audit()
}

// suspendedGetsNothing suspends agent/deploy: no new SVID, and nothing for the one that it has.
func (i *installation) suspendedGetsNothing(a *agent, txn string) {
	i.t.Helper()
	i.must(i.call("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "the test says so"}, nil))
	if _, err := i.become("deploy"); err == nil {
		i.t.Error("a suspended agent got an X.509-SVID")
	}
	if _, err := i.jwtFor(i.issuerURL()); err == nil {
		i.t.Error("a suspended agent got a JWT-SVID")
	}
	if got, err := a.grant(txn, nil); err != nil || !got.has("agent_suspended") && !got.has("run_token_invalid") {
		i.t.Errorf("suspended: %v %v", got, err)
	}
}

// TestOtherUsersRefused: under another uid the admin socket does not open, and if it did, it would not answer.
func TestOtherUsersRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process under another uid")
	}
	i := install(t, setting{})
	i.serve()
	sock := i.path("remit", "run", "admin.sock")
	try := func() string {
		cmd := exec.Command(binary, "--server", sock, "agent", "suspend", "deploy", "--reason", "mine")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4001, Gid: 4001, Groups: []uint32{}}}
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("uid 4001 manages the server: %s", out)
		}
		return string(out)
	}
	if out := try(); !strings.Contains(out, "permission denied") {
		t.Errorf("the closed socket: %s", out)
	}
	i.must(os.Chmod(sock, 0o666))
	if out := try(); !strings.Contains(out, "not an operator") {
		t.Errorf("the open socket: %s", out)
	}
	if out := i.run("agent", "show", "deploy"); !strings.Contains(out, "active") {
		t.Errorf("the agent is not active: %s", out)
	}
}

// stockOPA returns an opa binary of test/peers: $OPA, else bin/opa, else built now.
func stockOPA(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("OPA"); path != "" {
		return path
	}
	kept := filepath.Join("..", "..", "bin", "opa")
	if _, err := os.Stat(kept); err == nil {
		return kept
	}
	path := filepath.Join(t.TempDir(), "opa")
	build := exec.Command("go", "-C", filepath.Join("..", "peers"), "build", "-ldflags", "-s -w", "-o", path, "github.com/open-policy-agent/opa")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build opa: %v\n%s", err, out)
	}
	return path
}

// agreesWithOPA has stock opa judge every recorded decision by the exported policy.
func (i *installation) agreesWithOPA() {
	i.t.Helper()
	if testing.Short() {
		i.t.Log("SHORT leaves out opa")
		return
	}
	dir := i.path("policy")
	i.run("policy", "export", "--to", dir)
	var inputs []json.RawMessage
	decisions := i.recorded()
	for _, d := range decisions {
		inputs = append(inputs, json.RawMessage(i.run("why", string(d.ID), "--input")))
	}
	b, err := json.Marshal(map[string]any{"inputs": inputs})
	i.must(err)
	i.must(os.WriteFile(i.path("inputs.json"), b, 0o600))
	cmd := exec.Command(stockOPA(i.t), "eval", "--strict-builtin-errors", "-f", "values", "-d", dir, "-d", i.path("inputs.json"),
		"[d | some i in data.inputs; d := data.remit.decision with input as i]")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		i.t.Fatalf("opa eval: %v\n%s%s", err, out, stderr.String())
	}
	var got [][]struct {
		Effect     string         `json:"effect"`
		Permission string         `json:"permission"`
		Reasons    []remit.Reason `json:"reasons"`
		TTL        int64          `json:"ttl_ns"`
	}
	if err := json.Unmarshal(out, &got); err != nil || len(got) != 1 || len(got[0]) != len(decisions) {
		i.t.Fatalf("opa eval answered %.300s (%v)", out, err)
	}
	allowed := 0
	for k, d := range decisions {
		o := got[0][k]
		if o.Effect != d.Effect.String() || o.Permission != d.Permission.Name || o.TTL != int64(d.TTL) || len(o.Reasons) != len(d.Reasons) {
			i.t.Errorf("decision %s: recorded %s %s %v %s, opa %+v", d.ID, d.Effect, d.Permission.Name, d.Reasons, d.TTL, o)
		}
		if d.Effect == remit.Allow {
			allowed++
		}
	}
	if allowed == 0 || allowed == len(decisions) {
		i.t.Errorf("%d of %d decisions allow: that compares little", allowed, len(decisions))
	}
}
