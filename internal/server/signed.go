// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"remit"
	"remit/internal/bundle"
	"remit/internal/config"
)

// Signed configuration (S31): what stands in the directories is taken only when it is signed, follows what was active, and stays
// within the ceiling.

// signing is who must sign.
type signing struct {
	authors, ceiling bundle.Authors
}

func newSigning(cfg *config.ServerConfig) (signing, error) {
	authors, err1 := parseAuthors(cfg.Authors)
	ceiling, err2 := parseAuthors(cfg.Ceiling.Authors)
	if err := errors.Join(err1, err2); err != nil {
		return signing{}, err
	}
	for _, a := range authors.Keys {
		for _, c := range ceiling.Keys {
			//remit:guard S31 TestCeilingKeysAreOthers
			if a.ID() == c.ID() {
				return signing{}, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: the key of %s is one of authors and one of ceiling: an author would raise what bounds him", fileServer, a.Name),
					Hint: "let others sign the ceiling"}
			}
		}
	}
	return signing{authors, ceiling}, nil
}

func parseAuthors(cfg config.Authors) (bundle.Authors, error) {
	out := bundle.Authors{Threshold: cfg.Threshold}
	at := map[string]string{}
	for _, k := range cfg.Keys {
		key, err := bundle.ParsePublicKey(k.Name, k.Text)
		if err != nil {
			return out, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: key of %s: %v", k.At, k.Name, err), Hint: "remit policy key makes one"}
		}
		//remit:guard S31 TestOneKeyIsOnePerson
		if first, twice := at[key.ID()]; twice {
			return out, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: the key of %s stands at %s, too: one key would count as two persons", k.At, k.Name, first), Hint: "remove one"}
		}
		at[key.ID()] = k.At
		out.Keys = append(out.Keys, key)
	}
	return out, nil
}

// files is what stands in a directory, with the envelope beside it; nil: there is none.
type files struct {
	content  map[string][]byte
	envelope []byte
}

func readFiles(dir string) (files, error) {
	content, err := config.Read(dir)
	if err != nil {
		return files{}, err
	}
	envelope, err := config.ReadFile(dir, bundle.File, bundle.MaxEnvelope)
	if errors.Is(err, os.ErrNotExist) {
		return files{content, nil}, nil
	}
	return files{content, envelope}, err
}

// candidate is a configuration that was read and checked. unsigned says why its signatures are not enough; who activates it must not
// pass that over.
type candidate struct {
	set            *config.Set
	ceiling        *config.Ceiling // nil: none
	revision       remit.Revision
	signers        []string
	ceilingSigners []string // who signed the ceiling
	unsigned       error
}

// read checks what stands in the directories; instead, when not nil, stands for the configuration's.
func (s *Server) read(instead *files) (*candidate, error) {
	var err error
	var f files
	if instead != nil {
		f = *instead
	} else if f, err = readFiles(s.cfg.Config); err != nil {
		return nil, err
	}
	var ceiling files
	if _, err := os.Stat(s.cfg.Ceiling.Dir); err == nil {
		if ceiling, err = readFiles(s.cfg.Ceiling.Dir); err != nil {
			return nil, fmt.Errorf("ceiling: %w", err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	active, _ := s.store.ActiveRevision()
	return s.judge(f, ceiling, active, bundle.Authors.Verify)
}

// judge checks a configuration and a ceiling; signed is how signatures count.
func (s *Server) judge(f, ceiling files, active remit.Revision, signed func(bundle.Authors, *bundle.Bundle) ([]string, error)) (*candidate, error) {
	c := &candidate{}
	var err1, err2 error
	c.revision.Bundle, c.signers, err1 = s.signed(bundle.OfConfiguration, s.signing.authors, f, active.Bundle, signed)
	c.revision.Ceiling.Bundle, c.ceilingSigners, err2 = s.signed(bundle.OfCeiling, s.signing.ceiling, ceiling, active.Ceiling.Bundle, signed)
	c.unsigned = errors.Join(err1, err2)
	var err error
	if c.set, err = config.Parse(f.content, s.td); err != nil {
		return nil, errors.Join(c.unsigned, err)
	}
	c.revision.Digest, c.revision.Files = c.set.Digest, c.set.Files
	if ceiling.content == nil {
		return c, nil
	}
	if c.ceiling, err = config.ParseCeiling(ceiling.content); err != nil {
		return nil, errors.Join(c.unsigned, fmt.Errorf("ceiling: %w", err))
	}
	c.revision.Ceiling.Files = ceiling.content
	//remit:guard S31 TestCeilingBoundsTheServer
	if err := c.ceiling.Within(c.set); err != nil {
		return nil, errors.Join(c.unsigned, err)
	}
	return c, nil
}

// signed checks the bundle of files. Without authors nothing is asked, and the highest version that ever was stays remembered.
func (s *Server) signed(of string, a bundle.Authors, f files, active remit.Signed, verify func(bundle.Authors, *bundle.Bundle) ([]string, error)) (remit.Signed, []string, error) {
	if !a.Configured() {
		return remit.Signed{Version: active.Version, Manifest: active.Manifest}, nil, nil
	}
	//remit:guard S31 TestUnsignedIsRefused
	if f.envelope == nil {
		return remit.Signed{}, nil, bundle.NotSigned(of)
	}
	b, err := bundle.Parse(f.envelope)
	if err != nil {
		return remit.Signed{}, nil, err
	}
	if active.Envelope != nil && b.Digest() == active.Manifest {
		verify = bundle.Authors.Standing // it was verified when it became active; who was an author then may be none now
	}
	signers, err := verify(a, b)
	//remit:guard S31 TestBundlesAreRefused
	if err != nil {
		return remit.Signed{}, nil, err
	}
	//remit:guard S31 TestBundlesAreRefused
	if err := b.IsFor(of, s.td.Name()); err != nil {
		return remit.Signed{}, nil, err
	}
	//remit:guard S31 TestBundlesAreRefused
	if err := b.Covers(f.content); err != nil {
		return remit.Signed{}, nil, err
	}
	//remit:guard S31 TestBundlesAreRefused
	if err := b.Follows(bundle.Active{Version: active.Version, Manifest: active.Manifest}); err != nil {
		return remit.Signed{}, nil, err
	}
	return remit.Signed{Version: b.Version, Manifest: b.Digest(), Envelope: f.envelope}, signers, nil
}

// resume makes the revision that was active last the active one again, when it is signed: what lies in the directories now may be
// anything. It is verified by the keys of remit.yaml as they are now.
func (s *Server) resume() error {
	if !s.signing.authors.Configured() && !s.signing.ceiling.Configured() {
		return errors.New("nobody signs the configuration")
	}
	stored, ok := s.store.ActiveRevision()
	if !ok {
		return errors.New("no revision was active before")
	}
	c, err := s.judge(files{stored.Files, stored.Bundle.Envelope}, files{stored.Ceiling.Files, stored.Ceiling.Bundle.Envelope}, stored, bundle.Authors.Standing)
	if err != nil {
		return err
	}
	//remit:guard S31 TestDistrustedAuthor
	if c.unsigned != nil {
		return c.unsigned
	}
	next, err := s.build(c.set, s.store.Epoch(remit.PolicyKey))
	if err != nil {
		return err
	}
	next.take(c)
	s.retire(nil, next)
	s.rev.Store(next)
	s.rechecks.ask("")
	return register(s.registry, c.set)
}

// begin is what a start does: the last good revision when it is signed, then an apply. With a last good revision a refused apply
// is a finding; without one there is nothing to serve.
func (s *Server) begin(ctx context.Context) error {
	resumed := s.resume()
	_, err := s.activate(ctx, atStart, false)
	if err == nil || resumed != nil {
		return err
	}
	s.log.Error("the configuration is not applied; the last good revision is active", "revision", s.rev.Load().set.Digest, "err", err)
	return nil
}

// same reports whether two revisions say the same under the same signatures.
func same(a, b *remit.Revision) bool {
	return a.Digest == b.Digest && sameSigned(a.Bundle, b.Bundle) && sameSigned(a.Ceiling.Bundle, b.Ceiling.Bundle) &&
		maps.EqualFunc(a.Ceiling.Files, b.Ceiling.Files, bytes.Equal)
}

func sameSigned(a, b remit.Signed) bool {
	return a.Version == b.Version && a.Manifest == b.Manifest && bytes.Equal(a.Envelope, b.Envelope)
}

// refusal is an apply that changed nothing.
type refusal struct {
	at   time.Time
	by   string
	text string
}

type refusedData struct {
	Finding  string       `json:"finding"`
	Why      string       `json:"why"`
	Text     string       `json:"text"`
	Revision remit.Digest `json:"revision,omitempty"` // what stays active
}

const maxRefusedText = 4000

// noteRefusal remembers for doctor how the last apply went, and raises a finding when it failed.
func (s *Server) noteRefusal(ctx context.Context, by string, err error) {
	if err == nil {
		s.refused.Store(nil)
		return
	}
	data := refusedData{Finding: "configuration_refused", Why: string(remit.CodeOf(err)), Text: err.Error()}
	if why, ok := errors.AsType[bundle.Refusal](err); ok {
		data.Why = string(why)
	}
	if len(data.Text) > maxRefusedText {
		data.Text = strings.ToValidUTF8(data.Text[:maxRefusedText], "") + "…"
	}
	if r := s.rev.Load(); r != nil {
		data.Revision = r.set.Digest
	}
	s.refused.Store(&refusal{s.now(), by, data.Text})
	body, err := json.Marshal(data)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = s.record(ctx, remit.Event{At: s.now(), Kind: remit.EventFinding, By: by, Data: body})
	}
	if err != nil {
		s.log.Error("a refused configuration is not on record", "err", err)
	}
}
