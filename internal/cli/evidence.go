// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) evidenceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "evidence", Short: "Statements about images: add, list, show"}
	var source, subject string
	add := &cobra.Command{Use: "add FILE", Short: "Add a signed statement (a DSSE envelope), or with --subject a CI job's token; - reads standard input", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.evidenceAdd(c, source, subject, args[0]) }}
	add.Flags().StringVar(&source, "source", "", "the EvidenceSource whose signers vouch for it")
	add.Flags().StringVar(&subject, "subject", "", "the digest of the image that the CI job, whose token FILE holds, vouches for: sha256:HEX")
	_ = add.MarkFlagRequired("source")
	cmd.AddCommand(add,
		&cobra.Command{Use: "list", Short: "List statements, newest first", Args: cobra.NoArgs, RunE: a.evidenceList},
		&cobra.Command{Use: "show ID", Short: "Show one, as verified now", Args: cobra.ExactArgs(1), RunE: a.evidenceShow})
	return cmd
}

func (a *app) evidenceAdd(c *cobra.Command, source, subject, file string) error {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(a.in, 2<<20))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return badUse("%v", err)
	}
	if subject != "" {
		if b, err = json.Marshal(map[string]string{"token": strings.TrimSpace(string(b)), "subject": subject}); err != nil {
			return badUse("%v", err)
		}
	}
	if !json.Valid(b) {
		return badUse("%s is not JSON", file).hint("a signed statement is a DSSE envelope, as cosign and scanners' CI steps write it; the token of a CI job needs --subject")
	}
	var e remit.Evidence
	if err := a.post(c.Context(), "/v1/evidence", api.AddEvidence{Source: source, Envelope: b}, &e); err != nil {
		return err
	}
	return a.showEvidence(&e)
}

func (a *app) evidenceList(c *cobra.Command, _ []string) error {
	var list api.List[remit.Evidence]
	if err := a.get(c.Context(), "/v1/evidence", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, e := range list.Items {
			rows = append(rows, []string{string(e.ID), string(e.Kind), e.Source, e.Signer, e.Name, e.Worst.String(), stamp(e.Made)})
		}
		a.table("ID KIND SOURCE SIGNER NAME WORST MADE", rows)
		a.noteNext(list.Next)
	})
}

func (a *app) evidenceShow(c *cobra.Command, args []string) error {
	var e remit.Evidence
	if err := a.get(c.Context(), "/v1/evidence/"+args[0], nil, &e); err != nil {
		return err
	}
	return a.showEvidence(&e)
}

func (a *app) showEvidence(e *remit.Evidence) error {
	return a.show(e, func() {
		var subjects []string
		for _, d := range e.Subjects {
			subjects = append(subjects, string(d))
		}
		a.fields("evidence", string(e.ID), "kind", string(e.Kind), "source", e.Source, "signer", e.Signer, "name", e.Name,
			"subjects", strings.Join(subjects, " "), "worst", e.Worst.String(), "made", stamp(e.Made), "digest", string(e.Digest),
			"superseded by", string(e.Superseded))
		for k, v := range e.Fields {
			a.fields("  "+k, v)
		}
	})
}
