// SPDX-License-Identifier: Apache-2.0

package attestation_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/attestation"
	"remit/internal/evidence/evidencetest"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// rows is a store of statements with the query of evidence.Statements.
type rows struct{ all []remit.Statement }

func (r *rows) Statements(source string, kind remit.EvidenceKind, subject remit.Digest, name string, limit int) []remit.Statement {
	var out []remit.Statement
	for _, s := range r.all {
		if s.Source == source && s.Kind == kind && ((subject != "" && slices.Contains(s.Subjects, subject)) || (name != "" && s.Name == name)) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b remit.Statement) int { return b.Added.Compare(a.Added) })
	return out[:min(limit, len(out))]
}

// desk is one source with one signer, and the rows behind it.
type desk struct {
	*rows
	t      *testing.T
	signer *evidencetest.Signer
	source *attestation.Source
	deps   attestation.Deps
}

func newDesk(t *testing.T, change func(*attestation.Config, *attestation.Deps)) *desk {
	t.Helper()
	d := &desk{rows: &rows{}, t: t, signer: newSigner(t, "trivy")}
	cfg := attestation.Config{Signers: []attestation.Signer{{Name: "trivy", Key: attestation.Key{PEM: d.signer.PublicPEM()}}}}
	d.deps = attestation.Deps{Name: "trivy-ci", Statements: d.rows}
	if change != nil {
		change(&cfg, &d.deps)
	}
	d.use(cfg)
	return d
}

func (d *desk) use(cfg attestation.Config) {
	d.t.Helper()
	source, err := attestation.New(cfg, d.deps)
	if err != nil {
		d.t.Fatal(err)
	}
	d.source = source
}

func newSigner(t testing.TB, name string) *evidencetest.Signer {
	t.Helper()
	s, err := evidencetest.NewSigner(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t testing.TB, s *evidencetest.Signer, st evidencetest.Statement) []byte {
	t.Helper()
	env, err := s.Sign(st)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// add puts a statement of the desk's own signer through Add.
func (d *desk) add(st evidencetest.Statement) remit.Statement {
	d.t.Helper()
	row, _, err := hand(d.source, sign(d.t, d.signer, st), "operator/ci", noon)
	if err != nil {
		d.t.Fatal(err)
	}
	d.all = append(d.all, row)
	return row
}

// plant stores an envelope without asking, as one who writes to the database would.
func (d *desk) plant(kind remit.EvidenceKind, name string, envelope []byte, subjects ...remit.Digest) remit.Statement {
	row := remit.Statement{ID: remit.NewEvidenceID(), Kind: kind, Source: "trivy-ci", Name: name, Subjects: subjects, Envelope: envelope, Added: noon}
	d.all = append(d.all, row)
	return row
}

func (d *desk) find(need remit.Need) (*remit.Evidence, *remit.Reason) {
	d.t.Helper()
	need.Source = "trivy-ci"
	e, reason := d.source.Find(context.Background(), need, request())
	if (e == nil) == (reason == nil) {
		d.t.Fatalf("Find = %v, %v: not exactly one", e, reason)
	}
	return e, reason
}

// refuses wants a reason of the code.
func (d *desk) refuses(need remit.Need, code remit.ReasonCode) {
	d.t.Helper()
	if e, reason := d.find(need); reason == nil || reason.Code != code {
		d.t.Errorf("Find = %+v, %+v; want %s", e, reason, code)
	}
}

func (d *desk) finds(need remit.Need) *remit.Evidence {
	d.t.Helper()
	e, reason := d.find(need)
	if reason != nil {
		d.t.Fatalf("Find: %+v", reason)
	}
	return e
}

func request() *remit.Request {
	return &remit.Request{At: noon, Agent: "agent/deploy", Run: "run-a", Target: "production-cluster"}
}

func image(content string) remit.Image {
	return remit.Image{Repository: "registry.example/company/foo", Digest: remit.DigestOf([]byte(content))}
}

func scan(id string, of remit.Image, at time.Time, severities ...string) evidencetest.Scan {
	s := evidencetest.Scan{ID: id, Image: of.Repository, Subjects: []remit.Digest{of.Digest}, Finished: at}
	for _, word := range severities {
		s.Findings = append(s.Findings, evidencetest.Finding{ID: "CVE-2026-1", Severity: word})
	}
	return s
}

func need(id string, of remit.Image) remit.Need {
	return remit.Need{Kind: remit.EvidenceScan, ID: id, Of: of, Worst: remit.SeverityMedium, Within: 24 * time.Hour}
}

func TestScanIsFound(t *testing.T) {
	for name, shape := range map[string]func(evidencetest.Scan) evidencetest.Statement{
		"vulns": evidencetest.Scan.Statement, "cosign": evidencetest.Scan.CosignStatement} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, nil)
			row := d.add(shape(scan("scan-789", image("foo"), noon.Add(-2*time.Hour), "low", "MEDIUM")))
			e := d.finds(need("scan-789", image("foo")))
			if e.ID != row.ID || e.Name != "scan-789" || e.Signer != "trivy" || e.Worst != remit.SeverityMedium || !e.About(image("foo").Digest) {
				t.Errorf("found %+v", e)
			}
			if !e.Made.Equal(noon.Add(-2*time.Hour)) || !e.Verified.Equal(noon) || e.Superseded != "" || e.Fields["scanner"] == "" || e.Digest == "" {
				t.Errorf("found %+v", e)
			}
			if again := d.finds(need("", image("foo"))); again.ID != row.ID {
				t.Errorf("by subject: %+v", again)
			}
		})
	}
}

func TestWrongEvidenceHasItsOwnReason(t *testing.T) {
	good := func() evidencetest.Statement {
		return scan("scan-789", image("foo"), noon.Add(-time.Hour), "low").Statement()
	}
	foo := image("foo").Digest
	rows := map[string]struct {
		envelope func(t *testing.T, s *evidencetest.Signer) []byte
		code     remit.ReasonCode
	}{
		"unknown signer": {func(t *testing.T, _ *evidencetest.Signer) []byte { return sign(t, newSigner(t, "trivy"), good()) }, remit.ReasonEvidenceSigner},
		"unknown signer without key id": {func(t *testing.T, _ *evidencetest.Signer) []byte {
			s := newSigner(t, "x")
			s.NoKeyID = true
			return sign(t, s, good())
		}, remit.ReasonEvidenceInvalid},
		"flipped bit":          {func(t *testing.T, s *evidencetest.Signer) []byte { return flip(t, sign(t, s, good()), "payload") }, remit.ReasonEvidenceInvalid},
		"flipped signature":    {func(t *testing.T, s *evidencetest.Signer) []byte { return flip(t, sign(t, s, good()), "sig") }, remit.ReasonEvidenceInvalid},
		"payload type":         {func(t *testing.T, s *evidencetest.Signer) []byte { return signRaw(t, s, "text/plain", good()) }, remit.ReasonEvidenceInvalid},
		"duplicate key":        {duplicate(`"predicateType"`, `"predicateType":"x","predicateType"`), remit.ReasonEvidenceInvalid},
		"key in another case":  {duplicate(`"subject"`, `"Subject"`), remit.ReasonEvidenceInvalid},
		"other predicate":      {duplicate("vulns/v0.2", "vulns/v9"), remit.ReasonEvidenceInvalid},
		"other statement type": {duplicate("Statement/v1", "Statement/v2"), remit.ReasonEvidenceInvalid},
		"no result list":       {duplicate(`"result"`, `"results"`), remit.ReasonEvidenceInvalid},
		"no time":              {duplicate("scanFinishedOn", "scanFinishedBy"), remit.ReasonEvidenceInvalid},
		"made in the future":   {duplicate("2026-11-23T11:00:00Z", "2026-11-23T12:02:00Z"), remit.ReasonEvidenceInvalid},
		"uppercase digest":     {duplicate(foo.Hex(), strings.ToUpper(foo.Hex())), remit.ReasonEvidenceInvalid},
		"only sha1":            {duplicate(`"sha256"`, `"sha1"`), remit.ReasonEvidenceInvalid},
		"two scan ids":         {duplicate(`"digest":{`, `"annotations":{"scanId":"scan-1"},"digest":{`), remit.ReasonEvidenceInvalid},
		"not printable":        {duplicate(`"uri":"pkg:github/aquasecurity/trivy@`, `"uri":"\u0007pkg:github/aquasecurity/trivy@`), remit.ReasonEvidenceInvalid},
		"trailing data":        {func(t *testing.T, s *evidencetest.Signer) []byte { return append(sign(t, s, good()), "{}"...) }, remit.ReasonEvidenceInvalid},
		"too long":             {func(*testing.T, *evidencetest.Signer) []byte { return make([]byte, attestation.MaxEnvelope+1) }, remit.ReasonEvidenceInvalid},
		"empty":                {func(*testing.T, *evidencetest.Signer) []byte { return nil }, remit.ReasonEvidenceInvalid},
		"no signatures": {func(*testing.T, *evidencetest.Signer) []byte {
			return []byte(`{"payloadType":"` + attestation.PayloadType + `","payload":"e30=","signatures":[]}`)
		}, remit.ReasonEvidenceInvalid},
		"row of another subject": {func(t *testing.T, s *evidencetest.Signer) []byte {
			return sign(t, s, scan("scan-789", image("bar"), noon, "low").Statement())
		}, remit.ReasonEvidenceInvalid},
		"row of another name": {func(t *testing.T, s *evidencetest.Signer) []byte {
			return sign(t, s, scan("scan-1", image("foo"), noon, "low").Statement())
		}, ""},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, nil)
			env := row.envelope(t, d.signer)
			d.plant(remit.EvidenceScan, "scan-789", env, foo)
			if row.code != "" {
				d.refuses(need("", image("foo")), row.code)
			}
			if name == "row of another name" { // the name must stand inside the signed statement
				d.refuses(need("scan-789", image("foo")), remit.ReasonEvidenceMissing)
			}
			if name == "row of another subject" || name == "row of another name" {
				return // such envelopes are fine to add: they get the rows that they say
			}
			if _, _, err := hand(d.source, env, "operator/ci", noon); err == nil {
				t.Error("Add took it")
			}
		})
	}
}

func TestPayloadTypeIsNamed(t *testing.T) {
	d := newDesk(t, nil)
	d.plant(remit.EvidenceScan, "s", signRaw(t, d.signer, "application/json", scan("s", image("foo"), noon).Statement()), image("foo").Digest)
	if _, reason := d.find(need("s", image("foo"))); reason == nil || !strings.Contains(reason.Want, attestation.PayloadType) {
		t.Errorf("%+v", reason)
	}
}

func TestAboutAnotherImage(t *testing.T) {
	d := newDesk(t, nil)
	d.add(scan("scan-789", image("bar"), noon.Add(-time.Hour), "low").Statement())
	e := d.finds(need("scan-789", image("foo"))) // policy answers evidence_subject
	if e.About(image("foo").Digest) {
		t.Errorf("covers the asked image: %v", e.Subjects)
	}
	d.refuses(need("", image("foo")), remit.ReasonEvidenceMissing)
	d.refuses(need("scan-790", image("foo")), remit.ReasonEvidenceMissing)
	d.refuses(need("scan-789", remit.Image{Repository: "registry.example/foo", Tag: "v1"}), remit.ReasonEvidenceSubject)
	d.refuses(remit.Need{Kind: remit.EvidenceScan}, remit.ReasonEvidenceMissing)
}

func TestNewerFailSupersedes(t *testing.T) {
	foo := image("foo")
	other := evidencetest.Scan{ID: "scan-3", Image: "bar", Subjects: []remit.Digest{image("bar").Digest}, Finished: noon.Add(-time.Minute),
		Findings: []evidencetest.Finding{{ID: "CVE-1", Severity: "critical"}}}
	for name, row := range map[string]struct {
		newer []evidencetest.Statement
		want  bool
	}{
		"nothing newer":         {nil, false},
		"newer pass":            {[]evidencetest.Statement{scan("scan-2", foo, noon.Add(-time.Hour), "medium").Statement()}, false},
		"newer fail":            {[]evidencetest.Statement{scan("scan-2", foo, noon.Add(-time.Hour), "high").Statement()}, true},
		"fail at the same time": {[]evidencetest.Statement{scan("scan-2", foo, noon.Add(-2*time.Hour), "high").Statement()}, true},
		"older fail":            {[]evidencetest.Statement{scan("scan-2", foo, noon.Add(-3*time.Hour), "high").Statement()}, false},
		"fail of another image": {[]evidencetest.Statement{other.Statement()}, false},
		"fail of the other predicate": {[]evidencetest.Statement{
			scan("scan-2", foo, noon.Add(-time.Hour), "high").CosignStatement()}, true},
		"fail, then pass": {[]evidencetest.Statement{scan("scan-2", foo, noon.Add(-time.Hour), "high").Statement(),
			scan("scan-4", foo, noon.Add(-time.Minute), "low").Statement()}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, nil)
			pass := d.add(scan("scan-789", foo, noon.Add(-2*time.Hour), "low").Statement())
			for _, st := range row.newer {

				d.add(st)
			}
			e := d.finds(need("scan-789", foo))
			if e.ID != pass.ID || (e.Superseded != "") != row.want {
				t.Errorf("found %s, superseded by %q; want superseded: %v", e.Name, e.Superseded, row.want)
			}
			if got := d.finds(need("", foo)); (got.Worst > remit.SeverityMedium) != row.want {
				t.Errorf("without an id the failing scan is the answer: got %s, %s", got.Name, got.Worst)
			}
		})
	}
}

func TestSeverity(t *testing.T) {
	foo := image("foo")
	for word, want := range map[string]remit.Severity{
		"none": remit.SeverityNone, "LOW": remit.SeverityLow, " Medium ": remit.SeverityMedium, "high": remit.SeverityHigh,
		"critical": remit.SeverityCritical, "": remit.SeverityCritical, "UNKNOWN": remit.SeverityCritical, "negligible": remit.SeverityCritical,
		"0.0": remit.SeverityNone, "3.9": remit.SeverityLow, "5.2": remit.SeverityMedium, "7.0": remit.SeverityHigh, "9.8": remit.SeverityCritical,
		"-1": remit.SeverityCritical, "NaN": remit.SeverityCritical, "0x1p-2": remit.SeverityCritical, "inf": remit.SeverityCritical,
	} {
		d := newDesk(t, nil)
		d.add(scan("s", foo, noon.Add(-2*time.Hour), "low", word, "low").Statement())
		got := d.finds(remit.Need{Kind: remit.EvidenceScan, ID: "s", Of: foo}).Worst
		if want < remit.SeverityLow {
			want = remit.SeverityLow
		}
		if got != want {
			t.Errorf("worst of low and %q = %s, want %s", word, got, want)
		}
	}
	d := newDesk(t, nil)
	d.add(scan("s", foo, noon.Add(-time.Hour)).Statement())
	d.add(scan("c", foo, noon.Add(-time.Hour)).CosignStatement())
	for _, id := range []string{"s", "c"} {
		if got := d.finds(need(id, foo)).Worst; got != remit.SeverityNone {
			t.Errorf("empty list of %s = %s, want none", id, got)
		}
	}
}

func TestReplayIsNotNew(t *testing.T) {
	d := newDesk(t, nil)
	env := sign(t, d.signer, scan("scan-1", image("foo"), noon.Add(-time.Hour)).Statement())
	first, _, err := hand(d.source, env, "operator/ci", noon.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d.all = append(d.all, first)
	again, e, err := hand(d.source, append([]byte("\n "), env...), "operator/mallory", noon)
	if err != nil || again.ID != first.ID || again.AddedBy != "operator/ci" || e.ID != first.ID {
		t.Errorf("Add of the same signed bytes = %+v, %v", again, err)
	}
}

func TestAddRefuses(t *testing.T) {
	d := newDesk(t, func(c *attestation.Config, _ *attestation.Deps) { c.Kinds = []string{"scan"} })
	_, _, err := hand(d.source, sign(t, newSigner(t, "x"), scan("s", image("foo"), noon).Statement()), "operator/ci", noon)
	if e, ok := errors.AsType[*remit.Error](err); !ok || e.Code != remit.CodeForbidden || e.Hint == "" {
		t.Errorf("unknown signer: %v", err)
	}
	if _, _, err = hand(d.source, sign(t, d.signer, provenance("foo").Statement()), "operator/ci", noon); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("kind that the source does not vouch for: %v", err)
	}
	d.refuses(remit.Need{Kind: remit.EvidenceProvenance, Of: image("foo")}, remit.ReasonEvidenceSigner)
}

func TestTargetsAndHolders(t *testing.T) {
	for name, change := range map[string]func(*attestation.Config, *attestation.Deps){
		"another target": func(c *attestation.Config, _ *attestation.Deps) { c.Targets = []string{"staging-cluster"} },
		"held by the agent": func(c *attestation.Config, d *attestation.Deps) {
			c.Signers[0].Holder, d.Acting = "agent/deploy", func(remit.RunID) []remit.Name { return nil }
		},
		"held by the starter": func(c *attestation.Config, d *attestation.Deps) {
			c.Signers[0].Holder, d.Acting = "operator/ci", func(remit.RunID) []remit.Name { return []remit.Name{"operator/ci"} }
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, change)
			d.add(scan("s", image("foo"), noon.Add(-time.Hour)).Statement())
			d.refuses(need("s", image("foo")), remit.ReasonEvidenceSigner)
		})
	}
	d := newDesk(t, func(c *attestation.Config, d *attestation.Deps) {
		c.Targets, c.Signers[0].Holder = []string{"production-cluster"}, "operator/scanner"
		d.Acting = func(remit.RunID) []remit.Name { return []remit.Name{"operator/ci"} }
	})
	d.add(scan("s", image("foo"), noon.Add(-time.Hour)).Statement())
	d.finds(need("s", image("foo")))
}

// TestDistrust: a signer that a new configuration no longer lists loses what it signed before, whatever was remembered.
func TestDistrust(t *testing.T) {
	d := newDesk(t, nil)
	d.add(scan("s", image("foo"), noon.Add(-time.Hour)).Statement())
	d.finds(need("s", image("foo")))
	d.use(attestation.Config{Signers: []attestation.Signer{{Name: "other", Key: attestation.Key{PEM: newSigner(t, "other").PublicPEM()}}}})
	d.refuses(need("s", image("foo")), remit.ReasonEvidenceSigner)
}

func TestMoreStatementsThanAreWeighed(t *testing.T) {
	d := newDesk(t, nil)
	old := d.add(scan("old", image("foo"), noon.Add(-50*time.Hour)).Statement())
	for range 256 { // copies of one old pass crowd a fail out of the page
		copied := old
		copied.ID, copied.Added = remit.NewEvidenceID(), noon
		d.all = append(d.all, copied)
	}
	fail := d.add(scan("fail", image("foo"), noon.Add(-49*time.Hour), "critical").Statement())
	fail.Added = noon.Add(-48 * time.Hour)
	d.all[len(d.all)-1] = fail
	d.refuses(need("", image("foo")), remit.ReasonEvidenceSource)
	d.refuses(need("old", image("foo")), remit.ReasonEvidenceSource)
}

// signRaw signs a statement as another payload type.
func signRaw(t *testing.T, s *evidencetest.Signer, payloadType string, st evidencetest.Statement) []byte {
	t.Helper()
	b, err := st.JSON()
	if err != nil {
		t.Fatal(err)
	}
	env, err := s.EnvelopeOf(payloadType, b)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// duplicate returns a signer of a good scan in which one text was replaced before signing.
func duplicate(old, replacement string) func(*testing.T, *evidencetest.Signer) []byte {
	return func(t *testing.T, s *evidencetest.Signer) []byte {
		t.Helper()
		b, err := scan("scan-789", image("foo"), noon.Add(-time.Hour), "low").Statement().JSON()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), old) {
			t.Fatalf("no %s in %s", old, b)
		}
		env, err := s.Envelope([]byte(strings.Replace(string(b), old, replacement, 1)))
		if err != nil {
			t.Fatal(err)
		}
		return env
	}
}

// flip changes one bit of the decoded payload or signature.
func flip(t *testing.T, envelope []byte, member string) []byte {
	t.Helper()
	var env map[string]any
	if err := json.Unmarshal(envelope, &env); err != nil {
		t.Fatal(err)
	}
	at := env
	if member == "sig" {
		at = env["signatures"].([]any)[0].(map[string]any)
	}
	raw, err := base64.StdEncoding.DecodeString(at[member].(string))
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	at[member] = base64.StdEncoding.EncodeToString(raw)
	out, err := json.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hand puts an envelope through Add.
func hand(s *attestation.Source, envelope []byte, by string, at time.Time) (remit.Statement, *remit.Evidence, error) {
	added, err := s.Add(context.Background(), envelope, by, at)
	return added.Row, added.Fact, err
}
