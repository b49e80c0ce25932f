// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/evidence/evidencetest"
)

// startIssuer starts the CI system, in which an attacker may have jobs of his own.
func (l *lab) startIssuer(context.Context, string) error {
	var err error
	if l.issuer, err = evidencetest.NewIssuer(); err != nil {
		return err
	}
	return os.WriteFile(l.path("issuer.pem"), l.issuer.CA, 0o644)
}

// jobToken NAME DIGEST [CLAIM=VALUE…]: NAME becomes the token of a job of company/foo that vouches for the digest, and differs in what is said. A value of
// - takes a claim away; age=DURATION makes the token so old.
func (a *attack) jobToken(ts *testscript.TestScript, args []string) error {
	if a.profile.lab == nil {
		return errors.New("only the laboratory has a CI system")
	}
	m, err := pairs(args[2:])
	if err != nil {
		return err
	}
	age, err := time.ParseDuration(take(m, "age", "0s"))
	if err != nil {
		return err
	}
	issuer := a.profile.lab.issuer
	claims := issuer.GitHubRun("https://remit.company.com/"+args[1], time.Now().Add(-age))
	for k, v := range m {
		if claims[k] = v; v == "-" {
			delete(claims, k)
		}
	}
	token, err := issuer.Token(claims, nil, nil)
	ts.Setenv(args[0], token)
	return err
}
