// SPDX-License-Identifier: Apache-2.0

package run_test

import (
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/run"
)

func TestAccessTokens(t *testing.T) {
	const here, elsewhere = "https://remit/mcp", "https://remit/other"
	a, err := run.NewAccess()
	if err != nil {
		t.Fatal(err)
	}
	other, _ := run.NewAccess()
	r := start(t, flow())
	p := remit.Principal{ID: deploy, Level: remit.LevelLaunched, Launch: launch, Expires: noon.Add(time.Hour), Credential: "ab"}
	issue := func(p remit.Principal) string {
		t.Helper()
		token, id, _, err := a.Issue(p, &r, here, noon)
		if err != nil || id == "" {
			t.Fatal(err)
		}
		return token.Reveal()
	}
	token := issue(p)
	got, rn, err := a.AccessToken(token, here, noon.Add(time.Minute))
	if err != nil || rn != r.ID || got.ID != deploy || got.Launch != launch || got.Level != remit.LevelLaunched || got.Thumbprint != "" || got.Method != run.MethodAccess {
		t.Errorf("%+v %s %v", got, rn, err)
	}
	twentieth := "A"
	if token[20] == 'A' {
		twentieth = "B"
	}
	soon := p
	soon.Expires = noon.Add(time.Minute)
	for name, c := range map[string]struct {
		a        *run.Access
		token    string
		audience string
		at       time.Time
	}{
		"another audience": {a, token, elsewhere, noon}, "another server": {other, token, here, noon}, "over": {a, token, here, noon.Add(run.AccessTTL)},
		"over with its SVID": {a, issue(soon), here, noon.Add(time.Minute)}, "changed": {a, token[:20] + twentieth + token[21:], here, noon},
		"no prefix": {a, strings.TrimPrefix(token, "remit-at-"), here, noon}, "long": {a, token + strings.Repeat("A", 8000), here, noon}, "empty": {a, "", here, noon},
	} {
		if p, rn, err := c.a.AccessToken(c.token, c.audience, c.at); remit.CodeOf(err) != remit.CodeUnauthenticated || rn != "" || !p.IsZero() {
			t.Errorf("%s: %+v %s %v", name, p, rn, err)
		}
	}
	over := r
	over.State = remit.RunFinished
	if _, _, _, err := a.Issue(p, &over, here, noon); err == nil {
		t.Error("a token for a run that is over")
	}
	if _, _, _, err := a.Issue(got, &r, here, noon); err == nil {
		t.Error("an access token renewed itself")
	}
	if _, _, err := a.AccessToken(strings.Repeat("remit-at-", 1)+strings.Repeat("A", 5000), here, noon); err == nil || !strings.Contains(err.Error(), "not an access token") {
		t.Errorf("%v", err)
	}
}
