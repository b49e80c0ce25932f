// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"strings"

	"remit/internal/api"
	"remit/internal/bundle"
)

// checkSigned is S31: what is not signed, whoever can write the files decides.
func (s *Server) checkSigned() api.Check {
	out := api.Check{Name: "configuration", OK: true}
	rev := s.rev.Load()
	if a := s.signing.authors; a.Configured() {
		out.Text = fmt.Sprintf("version %d, signed by %s; %d must sign", rev.version, strings.Join(rev.signers, ", "), a.Threshold)
		return out
	}
	out.Warn, out.Text = true, "not signed: whoever can write "+s.cfg.Config+" decides what is allowed"
	out.Fix = "list authors in remit.yaml; docs/policy-ci.md shows how"
	return out
}

// checkCeiling says what bounds the authors.
func (s *Server) checkCeiling() api.Check {
	out := api.Check{Name: "ceiling", OK: true}
	switch rev := s.rev.Load(); {
	case rev.ceiling == "":
		out.Warn, out.Text, out.Fix = true, "none: nothing bounds what the configuration permits", "write one into "+s.cfg.Ceiling.Dir+"; docs/policy-ci.md shows how"
	case !s.signing.ceiling.Configured():
		out.Warn, out.Text, out.Fix = true, "not signed: whoever can write "+s.cfg.Ceiling.Dir+" raises it", "list keys for the ceiling in remit.yaml"
	default:
		out.Text = fmt.Sprintf("signed by %s; %d must sign", strings.Join(rev.ceilingSigners, ", "), s.signing.ceiling.Threshold)
	}
	return out
}

// checkApplied shows an apply that was refused: what is active is not what stands in the files.
func (s *Server) checkApplied() api.Check {
	out := api.Check{Name: "last apply", OK: true, Text: "what stands in the files when it was applied last is active"}
	if r := s.refused.Load(); r != nil {
		out.OK = false
		out.Text = fmt.Sprintf("refused at %s (%s): %s; revision %.19s… stays active", r.at.UTC().Format("2006-01-02 15:04:05 UTC"), r.by, r.text, s.rev.Load().set.Digest)
		out.Fix = "mend the files, or have them signed (" + bundle.File + "), and remit apply again; remit ledger list --kind finding shows all"
	}
	return out
}
