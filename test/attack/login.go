// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/api"
	"remit/internal/gateway/login/logintest"
)

// people of the laboratory's OpenID provider. ci has the name of a local operator there.
var accounts = map[string]logintest.Account{
	"alice": {Subject: "s-alice", Name: "alice", Groups: []string{"remit-admins"}},
	"carol": {Subject: "s-carol", Name: "carol", Groups: []string{"remit-audit"}},
	"eve":   {Subject: "s-eve", Name: "eve", Groups: []string{"everybody"}},
	"twin":  {Subject: "s-twin", Name: "carol", Groups: []string{"remit-admins"}},
	"bob":   {Subject: "s-bob", Name: "bob", Groups: []string{"remit-approvers", "finance"}},
	"dave":  {Subject: "s-dave", Name: "dave", Groups: []string{"remit-approvers", "finance"}},
	"frank": {Subject: "s-frank", Name: "frank", Groups: []string{"remit-approvers", "sales"}},
	"ci":    {Subject: "s-ci", Name: "ci", Groups: []string{"remit-admins"}},
}

// startProvider runs a real OpenID provider; where node or its packages are missing, logins are not attacked.
func (l *lab) startProvider(context.Context, string) error {
	p, stop, err := logintest.Run(accounts)
	if errors.Is(err, logintest.ErrMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	l.provider, l.stopProvider = p, stop
	return os.WriteFile(l.path("provider.pem"), p.CA, 0o644)
}

// people is the part of remit.yaml that lets people log in.
func (l *lab) people() string {
	if l.provider == nil {
		return ""
	}
	return fmt.Sprintf("people:\n  issuer: %s\n  client_id: %s\n  ca: %s\n  name: preferred_username\n  roles:\n"+
		"  - {claim: groups, has: remit-admins, roles: [admin]}\n  - {claim: groups, has: remit-audit, roles: [auditor]}\n"+
		"  - {claim: groups, has: remit-approvers, roles: [approver]}\n",
		l.provider.Issuer, logintest.ClientID, l.path("provider.pem"))
}

// key NAME: somebody with a key of his own and a certificate that nobody signed for him, as remit login makes them.
func (a *attack) key(_ *testscript.TestScript, args []string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		return err
	}
	return a.hold(args[0], fetched{}, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k})
}

// login KEY browser|device [REDIRECT]: the holder of the key begins to log in.
func (a *attack) login(_ *testscript.TestScript, args []string) (*answer, error) {
	body := map[string]string{"flow": args[1]}
	if args[1] == "browser" {
		body["redirect"] = "http://127.0.0.1:1/callback"
	}
	if len(args) > 2 {
		body["redirect"] = args[2]
	}
	return a.json(args[0], "/admin/login/start", body)
}

// finish KEY LOGIN [CODE STATE]: the holder of the key ends a login.
func (a *attack) finish(_ *testscript.TestScript, args []string) (*answer, error) {
	body := map[string]string{"login": args[1]}
	if len(args) > 3 {
		body["code"], body["state"] = args[2], args[3]
	}
	return a.json(args[0], "/admin/login/finish", body)
}

// json posts a body as a holder.
func (a *attack) json(holder, path string, body any) (*answer, error) {
	h, err := a.holder(holder)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return a.do(h, http.MethodPost, path, http.Header{"Content-Type": {"application/json"}}, b)
}

// person NAME KEY ACCOUNT: the account logs in by browser with the key, and NAME becomes the session's token.
func (a *attack) person(ts *testscript.TestScript, args []string) error {
	got, err := a.login(ts, []string{args[1], "browser"})
	if err != nil {
		return err
	}
	address, login := got.member("url"), got.member("login")
	back, err := a.profile.lab.provider.Browse(args[2], address, false)
	if err != nil {
		return err
	}
	if got, err = a.finish(ts, []string{args[1], login, back.Get("code"), back.Get("state")}); err != nil {
		return err
	}
	a.last = got
	if !got.allowed {
		return fmt.Errorf("%s does not get in: %s", args[2], got.text)
	}
	ts.Setenv(args[0], got.member("token"))
	return nil
}

// held NAME RUN: NAME becomes what waits for people in the run.
func (a *attack) held(ts *testscript.TestScript, args []string) error {
	var list api.List[api.Approval]
	if err := a.admin.Get(context.Background(), "/v1/approvals", url.Values{"state": {"pending"}, "limit": {"1000"}}, &list); err != nil {
		return err
	}
	for i := range list.Items {
		if string(list.Items[i].Run) == args[1] {
			ts.Setenv(args[0], string(list.Items[i].ID))
			return nil
		}
	}
	return fmt.Errorf("nothing waits in %s", args[1])
}

// browse NAME ACCOUNT ADDRESS [PARAM=VALUE…]: the account's browser visits the address, in which parameters are changed first, and NAME becomes the code that
// comes back.
func (a *attack) browse(ts *testscript.TestScript, args []string) error {
	u, err := url.Parse(args[2])
	if err != nil {
		return err
	}
	query := u.Query()
	for _, arg := range args[3:] {
		k, v, _ := strings.Cut(arg, "=")
		query.Set(k, v)
	}
	u.RawQuery = query.Encode()
	back, err := a.profile.lab.provider.Browse(args[1], u.String(), false)
	ts.Setenv(args[0], back.Get("code"))
	return err
}

// approve ACCOUNT ADDRESS USER-CODE: the account types a device login's code, and confirms it.
func (a *attack) approve(_ *testscript.TestScript, args []string) error {
	return a.profile.lab.provider.Approve(args[0], args[1], args[2])
}

// member NAME MEMBER: NAME becomes a text of the last answer, which is JSON.
func (a *attack) member(ts *testscript.TestScript, args []string) error {
	v := a.last.member(args[1])
	if v == "" {
		return fmt.Errorf("the last answer has no %s: %s", args[1], a.last.text)
	}
	ts.Setenv(args[0], v)
	return nil
}

func (a *answer) member(name string) string {
	var v map[string]any
	if json.Unmarshal([]byte(a.text), &v) != nil {
		return ""
	}
	text, _ := v[name].(string)
	return text
}

// call KEY TOKEN METHOD PATH [BODY]: a management call over HTTPS, with a session's token.
func (a *attack) call(_ *testscript.TestScript, args []string) (*answer, error) {
	h, err := a.holder(args[0])
	if err != nil {
		return nil, err
	}
	header := http.Header{"Authorization": {"Bearer " + args[1]}}
	body := []byte(nil)
	if len(args) > 4 {
		body = []byte(args[4])
	}
	return a.do(h, args[2], "/admin"+args[3], header, body)
}
