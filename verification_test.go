// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"encoding/json"
	"strings"
	"testing"

	"remit"
)

func TestVerificationHolds(t *testing.T) {
	granted := remit.Trial{Act: "apply", Granted: true, Outcome: remit.TrialPassed}
	refused := remit.Trial{Act: "read secrets", Outcome: remit.TrialRefused}
	dead, wide, unknown := granted, refused, refused
	dead.Outcome, wide.Outcome, unknown.Outcome = remit.TrialRefused, remit.TrialPassed, remit.TrialNotTried
	for name, c := range map[string]struct {
		trials []remit.Trial
		want   bool
	}{
		"as it should be": {[]remit.Trial{granted, refused, unknown}, true}, "a forbidden act passed": {[]remit.Trial{granted, refused, wide}, false},
		"a dead credential": {[]remit.Trial{dead, refused}, false}, "nothing granted was tried": {[]remit.Trial{refused}, false},
		"nothing forbidden was tried": {[]remit.Trial{granted, unknown}, false}, "nothing at all": {nil, false},
	} {
		v := remit.Verification{Trials: c.trials, Holds: !c.want}
		if v.Conclude(); v.Holds != c.want {
			t.Errorf("%s: holds %v", name, v.Holds)
		}
	}
}

// What a workflow calls sensitive is in no trial that is shown.
func TestVerificationShown(t *testing.T) {
	g := remit.Grant{Sensitive: true, Scope: remit.Args{"name": remit.StringValue("customer-555")}}
	v := remit.Verification{Trials: []remit.Trial{{Act: "read Deployment customer-555", Detail: `deployments "customer-555" is forbidden`}}}
	for sensitive, want := range map[bool]bool{true: false, false: true} {
		g.Sensitive = sensitive
		b, err := json.Marshal(v.Shown(&g))
		if err != nil || strings.Contains(string(b), "customer-555") != want {
			t.Errorf("sensitive %v: %s %v", sensitive, b, err)
		}
	}
	if !strings.Contains(v.Trials[0].Act, "customer-555") {
		t.Error("showing changed what is recorded")
	}
}
