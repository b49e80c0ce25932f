// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"slices"
	"strconv"
	"strings"

	"remit"
)

// keep denies an allow with an obligation that whoever carries out the act does not know: nobody would see to it (S17). The least
// tier is held to by the line itself. Who carries out only some obligations of a kind names them whole.
func keep(req *remit.Request, w *weighed) {
	if w.decision.Effect != remit.Allow {
		return
	}
	for _, o := range w.decision.Obligations {
		kind, _, _ := strings.Cut(o, "=")
		//remit:guard S17 TestUnknownObligationDenies
		if kind != "sandbox" && !slices.Contains(req.Keeps, kind) && !slices.Contains(req.Keeps, o) {
			w.deny(remit.Reason{Code: remit.ReasonObligation, Of: "obligation", Want: clip(o), Got: "the enforcement point does not know it"})
			return
		}
	}
	// An enforcement point that asks by AuthZEN is told the limits in the answer, and holds to them as to the rest of it. Of what we mint
	// and pass on ourselves, a driver has to know the limit.
	for name, n := range w.decision.Limits {
		//remit:guard S17 TestLimitOfNothingDenies
		if req.Via != "authzen" && n < 1 { // to a driver it would be no limit
			w.deny(remit.Reason{Code: remit.ReasonObligation, Of: "limits." + name, Want: strconv.FormatInt(n, 10), Got: "nothing can be had with it"})
			return
		}
		//remit:guard S17 TestUnheldLimitDenies
		if req.Via != "authzen" && !slices.Contains(req.Keeps, "limits."+name) {
			w.deny(remit.Reason{Code: remit.ReasonObligation, Of: "limits." + name, Want: strconv.FormatInt(n, 10), Got: "nobody would hold the act to it"})
			return
		}
	}
}
