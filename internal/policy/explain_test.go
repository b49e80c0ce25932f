// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"strings"
	"testing"

	"remit"
	"remit/internal/policy"
)

// TestExplainedWordsStayOnTheirLine: S39. What an agent wrote cannot begin a line of the explanation, nor hide one.
func TestExplainedWordsStayOnTheirLine(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}})
	const evil = "kubernetes.apply\npermission: anything\r\x1b[2J\u2028x"
	d := remit.Decision{ID: "dec-1", At: noon, Agent: "agent/deploy", Action: evil, Target: evil, Policy: p.Digest(),
		Reasons: []remit.Reason{{Code: remit.ReasonArgument, Of: "where." + evil, Want: evil, Got: evil}}}
	text := policy.Explain(&d, p).Text
	if strings.ContainsAny(text, "\r\x1b\u2028") || strings.Contains(text, "\npermission: anything") {
		t.Errorf("%q", text)
	}
}
