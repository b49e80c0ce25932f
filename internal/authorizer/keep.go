// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"slices"
	"strings"

	"remit"
)

// keep denies an allow with an obligation that whoever carries out the act does not know: nobody would see to it (S17). The least
// tier is held to by the line itself.
func keep(req *remit.Request, w *weighed) {
	if w.decision.Effect != remit.Allow {
		return
	}
	for _, o := range w.decision.Obligations {
		kind, _, _ := strings.Cut(o, "=")
		//remit:guard S17 TestUnknownObligationDenies
		if kind != "sandbox" && !slices.Contains(req.Keeps, kind) {
			w.deny(remit.Reason{Code: remit.ReasonObligation, Of: "obligation", Want: clip(o), Got: "the enforcement point does not know it"})
			return
		}
	}
}
