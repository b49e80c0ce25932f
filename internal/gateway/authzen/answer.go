// SPDX-License-Identifier: Apache-2.0

package authzen

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
	"remit/internal/gateway"
)

// appendDecision appends {"decision":…,"context":{…}} (section 6.2). Of the reasons only code and part leave (S30).
//
// An allow carries what the enforcement point has to keep: obligations, limits and how many seconds it holds. A hold is a
// denial with access_request, as the Access Request and Approval profile has it: the decision can be asked for again until
// expires_at, and its id stands for it. approval is the id of the one that came with the request, if one did.
func (h *Handler) appendDecision(b []byte, d *remit.Decision, approval string) []byte {
	allow := d.Effect == remit.Allow
	b = strconv.AppendBool(append(b, `{"decision":`...), allow)
	b = append(append(append(b, `,"context":{"decision_id":"`...), d.ID...), '"')
	if len(d.Reasons) > 0 {
		b = gateway.AppendReasons(append(b, `,"reasons":`...), d.Reasons)
	}
	b = appendObligations(b, d.Obligations)
	//remit:guard S12 TestAllowCarriesWhatMustBeKept
	if allow {
		b = appendTerms(b, d)
	}
	if d.Effect == remit.Hold {
		b = append(append(append(b, `,"evaluation_id":"`...), d.ID...), '"')
		b = appendTime(append(b, `,"evaluated_at":"`...), d.At)
		b = appendTime(append(b, `","access_request":{"expires_at":"`...), d.Until)
		b = append(append(append(b, `","hold":"`...), d.Hold...), '"')
		if h.cfg.Holds != nil {
			b = remit.AppendJSONString(append(b, `,"endpoint":`...), h.cfg.Base+accessPath)
		}
		b = append(b, '}')
	}
	if !allow && approval != "" && h.cfg.Holds != nil {
		b = h.appendNext(b, d, approval)
	}
	if d.Receipt != nil {
		b = gateway.AppendReceipt(append(b, `,"receipt":`...), d.Receipt)
	}
	return append(b, "}}"...)
}

func appendTerms(b []byte, d *remit.Decision) []byte {
	if d.TTL > 0 {
		b = strconv.AppendInt(append(b, `,"expires_in":`...), int64(d.TTL/time.Second), 10)
	}
	if len(d.Limits) > 0 {
		limits := make(remit.Args, len(d.Limits))
		for k, n := range d.Limits {
			limits[k] = remit.IntValue(n)
		}
		b = limits.AppendJSON(append(b, `,"limits":`...))
	}
	return b
}

// appendObligations names them as the Obligations profile has it; an enforcement point that does not know one must deny.
func appendObligations(b []byte, obligations []string) []byte {
	own := func(o string) bool { return strings.HasPrefix(o, "notify=") } // Remit sees to it
	if slices.ContainsFunc(obligations, own) {
		obligations = slices.DeleteFunc(slices.Clone(obligations), own)
	}
	if len(obligations) == 0 {
		return b
	}
	b = append(b, `,"obligations":[`...)
	for i, o := range obligations {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(remit.AppendJSONString(append(b, `{"id":`...), o), `,"type":"custom"}`...)
	}
	return append(b, ']')
}

func appendTime(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, time.RFC3339) }

// appendProblem appends a batch item that could not be evaluated: a denial that says why (section 7.2.1).
func appendProblem(b []byte, err error) []byte {
	status, msg := problem(err)
	b = strconv.AppendInt(append(b, `{"decision":false,"context":{"error":{"status":`...), int64(status), 10)
	b = remit.AppendJSONString(append(b, `,"message":`...), msg)
	return append(b, "}}}"...)
}
