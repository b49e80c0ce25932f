// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/base64"
	"errors"
	"strconv"

	"remit"
)

// AppendReasons appends what an agent may see of reasons (S30): [{"code":…,"of":…},…]. Wanted and found values stay behind.
func AppendReasons(b []byte, reasons []remit.Reason) []byte {
	b = append(b, '[')
	for i, r := range reasons {
		if i > 0 {
			b = append(b, ',')
		}
		b = remit.AppendJSONString(append(b, `{"code":`...), string(r.Code))
		if r.Of != "" {
			b = remit.AppendJSONString(append(b, `,"of":`...), r.Of)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// Refusal is what a reason records as got of a token that did not verify: which check refused it is for people with a role (S30).
func Refusal(err error) string {
	if e, ok := errors.AsType[*remit.Error](err); ok {
		return e.Msg
	}
	return ""
}

// RefusedToken is the reason for a run token that was refused, and the run of one that is good and in the wrong hands. That belongs on
// record with the denial; it gives the caller nothing, because what has a reason to be refused is denied before anything else.
func RefusedToken(err error) (remit.Reason, remit.RunID) {
	r := remit.Reason{Code: remit.ReasonRunToken, Got: Refusal(err)}
	switch {
	case errors.Is(err, remit.ErrOtherAgent):
		r.Of = remit.OfAgent
	case errors.Is(err, remit.ErrOtherHolder):
		r.Of = remit.OfHolder
	}
	var run remit.RunID
	if e, ok := errors.AsType[*remit.Error](err); ok && r.Of != "" {
		run = remit.RunID(e.ID)
	}
	return r, run
}

// AppendReceipt appends the receipt in the JSON form that remit.Receipt reads.
func AppendReceipt(b []byte, r *remit.Receipt) []byte {
	b = strconv.AppendUint(append(b, `{"seq":`...), r.Seq, 10)
	b = appendBase64(append(b, `,"leaf":`...), r.Leaf)
	b = strconv.AppendUint(append(b, `,"first":`...), r.First, 10)
	b = strconv.AppendUint(append(b, `,"size":`...), r.Size, 10)
	b = append(b, `,"path":[`...)
	for i, p := range r.Path {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendBase64(b, p)
	}
	b = remit.AppendJSONString(append(b, `],"key":`...), r.Key)
	b = appendBase64(append(b, `,"sig":`...), r.Signature)
	return append(b, '}')
}

func appendBase64(b, raw []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(append(b, '"'), raw), '"')
}

// AppendTexts appends a JSON array of strings.
func AppendTexts(b []byte, texts []string) []byte {
	b = append(b, '[')
	for i, s := range texts {
		if i > 0 {
			b = append(b, ',')
		}
		b = remit.AppendJSONString(b, s)
	}
	return append(b, ']')
}

// Next says what an agent can do about a reason, without telling anything of others (S30).
func Next(code remit.ReasonCode) string {
	switch code {
	case remit.ReasonNoRun, remit.ReasonRunToken:
		return "send a live run token that is bound to your own certificate or launch, in the Txn-Token header"
	case remit.ReasonRunEnded:
		return "the work is over: ask whoever starts runs for a new one"
	case remit.ReasonRunMismatch:
		return "leave out run and stage, or state those that the run token stands for"
	case remit.ReasonWorkflowChanged:
		return "the workflow changed since the run started: a new run is needed"
	case remit.ReasonUnknownAgent, remit.ReasonNotEnrolled, remit.ReasonAsserted:
		return "an operator has to enrol this identity, or the subject has to prove itself"
	case remit.ReasonSuspended:
		return "an operator has to reinstate the agent"
	case remit.ReasonThrottled:
		return "ask for less: until an operator reinstates the agent it is given little an hour"
	case remit.ReasonEvidenceMissing, remit.ReasonEvidenceStale, remit.ReasonSuperseded, remit.ReasonEvidenceSubject:
		return "have the evidence that is named made for exactly this request, then ask again"
	case remit.ReasonEvidenceInvalid, remit.ReasonEvidenceSigner, remit.ReasonEvidenceSeverity, remit.ReasonEvidenceField:
		return "the evidence that is named does not support this request: better evidence is needed"
	case remit.ReasonEvidenceSource, remit.ReasonConflict, remit.ReasonFault:
		return "ask again in a moment"
	case remit.ReasonApprovalDenied, remit.ReasonHoldExpired:
		return "people were asked about exactly this, and it is over: do not ask again in this run"
	case remit.ReasonApproval:
		return "a person has to approve; ask again then"
	case remit.ReasonTarget:
		return "the target cannot take this grant now: an operator sees why with remit doctor"
	case remit.ReasonObligation:
		return "what this is allowed under cannot be carried out here: an operator has to look at it"
	case remit.ReasonLevel:
		return "this target takes only agents that Remit launched: remit exec"
	case remit.ReasonHours:
		return "ask again inside the permission's hours"
	case remit.ReasonUnder:
		return "ask inside the call that this belongs to, and name its decision as under"
	}
	return "ask only for what this stage of the run permits; with a role, remit why shows what that is"
}
