// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
)

type evidenceData struct {
	Source  string             `json:"source"`
	Kind    remit.EvidenceKind `json:"kind"`
	ID      remit.EvidenceID   `json:"id"`
	Name    string             `json:"name,omitempty"`
	Signer  string             `json:"signer"`
	Subject []remit.Digest     `json:"subjects"`
	Digest  remit.Digest       `json:"digest"`
}

// opEvidenceAdd stores a statement that a signer of the source signed. Who hands it in does not matter: the signature does.
func (s *Server) opEvidenceAdd(ctx context.Context, c admin.Call) (any, error) {
	var in api.AddEvidence
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	added, err := s.rev.Load().collector.Add(ctx, in.Source, in.Envelope, c.Who.String(), s.now())
	if err != nil {
		return nil, err
	}
	st, fact := added.Row, added.Fact
	if _, known := s.store.Statement(st.ID); known {
		return fact, nil
	}
	body, err := json.Marshal(evidenceData{in.Source, st.Kind, st.ID, fact.Name, fact.Signer, st.Subjects, fact.Digest})
	if err != nil {
		return nil, err
	}
	change := remit.Change{Rows: []remit.Row{st}, Events: []remit.Event{{At: s.now(), Kind: remit.EventEvidence, By: c.Who.String(), Data: body}}}
	//remit:guard S16 TestCITokenCountsOnce
	if added.Once != nil {
		change.Rows = append(change.Rows, *added.Once)
		change.Require = []remit.Precondition{{Key: added.Once.EpochKey()}}
	}
	if _, err = s.store.Commit(ctx, change); err == nil {
		s.rechecks.ask(in.Source) // it may be a failing scan under which live grants are not allowed any more
	}
	if remit.CodeOf(err) == remit.CodeConflict {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: "the token was used before: it counts once", Hint: "let the job ask its CI system for another", Cause: err}
	}
	return fact, err
}

func (s *Server) opEvidenceList(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	rows, err := s.store.ListStatements("", limit, remit.EvidenceID(after))
	if err != nil {
		return nil, err
	}
	out := make([]remit.Evidence, 0, len(rows))
	for i := range rows {
		out = append(out, s.verifiedNow(&rows[i]))
	}
	return listed(out, limit, func(e remit.Evidence) string { return string(e.ID) }), nil
}

func (s *Server) opEvidence(_ context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseEvidenceID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	st, ok := s.store.Statement(id)
	if !ok {
		return nil, notFound("evidence", string(id))
	}
	return s.verifiedNow(&st), nil
}

// verifiedNow judges a stored statement by the active revision's signers, as the line would.
func (s *Server) verifiedNow(st *remit.Statement) remit.Evidence {
	fact, err := s.rev.Load().collector.Read(st)
	if err != nil {
		return remit.Evidence{ID: st.ID, Kind: st.Kind, Source: st.Source, Name: st.Name, Subjects: st.Subjects,
			Fields: map[string]string{"not accepted now": err.Error()}}
	}
	return *fact
}
