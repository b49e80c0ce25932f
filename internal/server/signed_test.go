// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit"
	"remit/internal/api"
	"remit/internal/bundle"
	"remit/internal/config"
)

// author is somebody with a key.
type author struct{ name, file string }

func (f *fixture) author(name string) author {
	f.t.Helper()
	a := author{name, filepath.Join(f.dir, "keys", name+".key")}
	if _, err := CreateAuthorKey(a.file); err != nil {
		f.t.Fatal(err)
	}
	return a
}

// configure appends to remit.yaml; a server must be started after it.
func (f *fixture) configure(text string) {
	f.t.Helper()
	name := filepath.Join(f.dir, fileServer)
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, append(b, text...), 0o644)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// signers is the text of a list of keys in remit.yaml.
func signers(threshold string, authors ...author) string {
	out := "  threshold: " + threshold + "\n  keys:\n"
	for _, a := range authors {
		out += "  - {name: " + a.name + ", file: " + a.file + ".pub}\n"
	}
	return out
}

// sign makes the next bundle of a directory, signed.
func (f *fixture) sign(dir string, by ...author) {
	f.t.Helper()
	if _, err := MakeBundle(BundleOptions{Dir: filepath.Join(f.dir, dir), TrustDomain: "company.com", Again: true}); err != nil {
		f.t.Fatal(err)
	}
	for _, a := range by {
		if _, err := SignBundle(filepath.Join(f.dir, dir), a.file, nil); err != nil {
			f.t.Fatal(err)
		}
	}
}

// envelope is the bundle of the configuration directory.
func (f *fixture) envelope() []byte {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, dirConfig, bundle.File))
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *fixture) putFile(name string, content []byte) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// refused wants an apply to be refused for a reason, nothing to change, and a finding.
func (f *fixture) refused(name string, why string) {
	f.t.Helper()
	before, last := f.srv.rev.Load(), f.srv.store.LastSeq()
	err := f.admin.Post(f.t.Context(), "/v1/apply", nil, nil)
	e, _ := err.(*remit.Error)
	if e == nil || e.Code != remit.CodeInvalid || !strings.Contains(e.Msg, why) || e.Hint == "" {
		f.t.Errorf("%s: %v; want %s with a next step", name, err, why)
	}
	if f.srv.rev.Load() != before {
		f.t.Errorf("%s: the revision changed", name)
	}
	if got := f.finding(last); !strings.Contains(got.Why+" "+got.Text, why) || got.Revision != before.set.Digest {
		f.t.Errorf("%s: the finding says %+v", name, got)
	}
}

// finding is the newest finding after an entry.
func (f *fixture) finding(after uint64) refusedData {
	f.t.Helper()
	var list api.List[api.Entry]
	if err := f.admin.Get(f.t.Context(), "/v1/ledger", map[string][]string{"kind": {"finding"}, "limit": {"1000"}}, &list); err != nil {
		f.t.Fatal(err)
	}
	var e struct {
		Data refusedData `json:"data"`
	}
	for _, item := range list.Items {
		if item.Seq > after {
			if err := json.Unmarshal(item.Event, &e); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	return e.Data
}

// signedServer runs with alice and bob as authors, both of whom must sign, and version 1 active.
func signedServer(t *testing.T) (f *fixture, alice, bob author) {
	t.Helper()
	f = setUp(t)
	alice, bob = f.author("alice"), f.author("bob")
	f.configure("authors:\n" + signers("2", alice, bob))
	f.sign(dirConfig, alice, bob)
	f.restart()
	if r := f.srv.rev.Load(); r.version != 1 || strings.Join(r.signers, " ") != "alice bob" {
		t.Fatalf("version %d of %v", r.version, r.signers)
	}
	return f, alice, bob
}

func TestUnsignedIsRefused(t *testing.T) {
	f, _, _ := signedServer(t)
	f.write(f.files + "# a remark\n")
	if err := os.Remove(filepath.Join(f.dir, dirConfig, bundle.File)); err != nil {
		t.Fatal(err)
	}
	f.refused("no bundle", string(bundle.Unsigned))
	var out api.Applied
	if f.must("/v1/apply?dry_run=true", nil, &out); out.Refused == "" || len(out.Changed) != 1 {
		t.Errorf("a dry run says %+v", out)
	}
}

// TestBundlesAreRefused: every way in which a bundle is not the next version of these authors, on a running server.
func TestBundlesAreRefused(t *testing.T) {
	f, alice, bob := signedServer(t)
	mallory := f.author("mallory")
	first := f.envelope()
	edit := func(text string) { f.write(f.files + "# " + text + "\n") }

	edit("changed")
	f.refused("changed after signing", string(bundle.Changed))
	f.putFile("config/more.yaml", []byte("kind: Agent\nname: more\n"))
	f.write(f.files)
	f.refused("added after signing", string(bundle.Changed))
	_ = os.Remove(filepath.Join(f.dir, dirConfig, "more.yaml"))
	if err := f.admin.Post(t.Context(), "/v1/apply", nil, nil); err != nil {
		t.Errorf("as it was signed: %v", err)
	}

	edit("two")
	f.sign(dirConfig, alice)
	f.refused("one of two", string(bundle.Missing))
	if _, err := SignBundle(filepath.Join(f.dir, dirConfig), alice.file, nil); err == nil {
		t.Error("alice signs twice")
	}
	if _, err := SignBundle(filepath.Join(f.dir, dirConfig), mallory.file, nil); err != nil {
		t.Fatal(err)
	}
	f.refused("a stranger", string(bundle.Unknown))
	f.putFile("config/bundle.json", first)
	f.sign(dirConfig, alice, bob)
	f.must("/v1/apply", nil, nil)
	second := f.envelope()

	f.write(f.files)
	f.putFile("config/bundle.json", first)
	f.refused("an older version", string(bundle.Replayed))
	edit("another two")
	f.sign(dirConfig, alice, bob)
	f.refused("the same version with other content", string(bundle.Taken))
	f.sign(dirConfig, alice, bob) // version 3, made from a version 2 that nobody applied
	f.refused("made from another version", string(bundle.NotNext))
	b, err := bundle.New(bundle.OfCeiling, "company.com", map[string][]byte{"story.yaml": []byte(f.files)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.putFile("config/bundle.json", b.Bytes())
	for _, a := range []author{alice, bob} {
		f.write(f.files)
		if _, err := SignBundle(filepath.Join(f.dir, dirConfig), a.file, nil); err != nil {
			t.Fatal(err)
		}
	}
	f.refused("a ceiling's", string(bundle.OfAnother))
	f.putFile("config/bundle.json", []byte("{"))
	f.refused("no envelope", string(bundle.Malformed))

	f.putFile("config/bundle.json", second)
	edit("three")
	f.sign(dirConfig, alice, bob)
	var out api.Applied
	if f.must("/v1/apply", nil, &out); out.Version != 3 || len(out.Signers) != 2 {
		t.Errorf("the next version: %+v", out)
	}
}

// TestRestartKeepsTheSigned: after a restart the last good signed revision decides, whatever lies in the directory.
func TestRestartKeepsTheSigned(t *testing.T) {
	for name, spoil := range map[string]func(*fixture){
		"unsigned files": func(f *fixture) {
			f.write(strings.Replace(f.files, "ttl: 5m", "ttl: 50m", 1))
			_ = os.Remove(filepath.Join(f.dir, dirConfig, bundle.File))
		},
		"changed files": func(f *fixture) { f.write(f.files + "# more\n") },
		"broken files":  func(f *fixture) { f.write("{") },
		"no files":      func(f *fixture) { _ = os.RemoveAll(filepath.Join(f.dir, dirConfig)) },
	} {
		t.Run(name, func(t *testing.T) {
			f, _, _ := signedServer(t)
			digest, last := f.srv.rev.Load().set.Digest, f.srv.store.LastSeq()
			spoil(f)
			f.restart()
			if r := f.srv.rev.Load(); r.set.Digest != digest || r.version != 1 {
				t.Fatalf("revision %s, version %d", r.set.Digest, r.version)
			}
			if got := f.finding(last); got.Finding != "configuration_refused" || got.Revision != digest {
				t.Errorf("the finding says %+v", got)
			}
			var checks []api.Check
			if err := f.admin.Get(t.Context(), "/v1/doctor", nil, &checks); err != nil {
				t.Fatal(err)
			}
			found := false
			for _, c := range checks {
				found = found || c.Name == "last apply" && !c.OK && strings.Contains(c.Text, "refused")
			}
			if !found {
				t.Errorf("doctor says %+v", checks)
			}
			if f.agent("agent/deploy", f.shared()).enter(f.startRun()).ask("write").Secret == "" {
				t.Error("the last good revision does not decide")
			}
		})
	}
}

// TestUnsignedIsNotBuilt: what nobody vouches for is compared, and none of the files and programs that it names is opened.
func TestUnsignedIsNotBuilt(t *testing.T) {
	f, _, _ := signedServer(t)
	times := 0
	targetDrivers["witness"] = func(o config.Object, d deps) (out built, err error) { times++; return }
	t.Cleanup(func() { delete(targetDrivers, "witness") })
	files := f.files + "---\nkind: Target\nname: more\ntype: witness\n"
	var out api.Applied
	f.must("/v1/apply/compare", api.Compare{Files: map[string][]byte{"story.yaml": []byte(files)}}, &out)
	f.write(files)
	f.must("/v1/apply?dry_run=true", nil, &out)
	if times != 0 || out.Refused == "" || len(out.Changes) != 1 {
		t.Errorf("built %d times: %+v", times, out)
	}
	if code := f.post("/v1/apply", nil, nil); code != remit.CodeInvalid || times != 0 {
		t.Errorf("applied: %q, built %d times", code, times)
	}
}

// fails starts a server that must not start.
func (f *fixture) fails(want string) {
	f.t.Helper()
	if err := f.stop(); err != nil {
		f.t.Fatal(err)
	}
	srv, err := New(f.t.Context(), Options{Dir: f.dir, Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err == nil {
		_ = srv.store.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		f.t.Errorf("started: %v; want %s", err, want)
	}
}

// TestDistrustedAuthor: an author whose key was taken from the list has no word any more, neither for what he signed before.
func TestDistrustedAuthor(t *testing.T) {
	f := setUp(t)
	alice, bob := f.author("alice"), f.author("bob")
	yaml, err := os.ReadFile(filepath.Join(f.dir, fileServer))
	if err != nil {
		t.Fatal(err)
	}
	with := func(a ...author) {
		f.putFile(fileServer, yaml)
		f.configure("authors:\n" + signers("1", a...))
	}
	with(alice)
	f.fails(string(bundle.Unsigned)) // what was active was unsigned, too
	f.sign(dirConfig, alice)
	f.start()
	with(bob)
	f.fails(string(bundle.Missing))

	// A rotation: both are listed, the new key signs a new version, the old key goes.
	with(alice, bob)
	f.start()
	f.sign(dirConfig, bob)
	f.must("/v1/apply", nil, nil)
	with(bob)
	f.restart()
	if r := f.srv.rev.Load(); r.version != 2 || strings.Join(r.signers, " ") != "bob" {
		t.Errorf("version %d of %v", r.version, r.signers)
	}
	if f.srv.refused.Load() != nil {
		t.Errorf("refused: %+v", f.srv.refused.Load())
	}

	// Authors that were gone for a while do not open the way back to an older version.
	old := f.envelope()
	f.sign(dirConfig, bob)
	f.must("/v1/apply", nil, nil)
	f.putFile(fileServer, yaml)
	f.restart()
	if r := f.srv.rev.Load(); r.version != 0 {
		t.Errorf("unsigned, and version %d", r.version)
	}
	with(bob)
	f.putFile("config/bundle.json", old)
	f.fails(string(bundle.Replayed))
}

func TestOneKeyIsOnePerson(t *testing.T) {
	f := setUp(t)
	alice := f.author("alice")
	twin := alice
	twin.name = "twin"
	f.configure("authors:\n" + signers("2", alice, twin))
	f.fails("one key would count as two persons")
}

func TestCeilingKeysAreOthers(t *testing.T) {
	f := setUp(t)
	alice := f.author("alice")
	f.configure("authors:\n" + signers("1", alice) + "ceiling:\n" + signers("1", alice))
	f.fails("raise what bounds him")
}

const lid = `kind: Ceiling
name: all
may:
- {actions: [memory.*], targets: [cluster, vault], ttl: 5m}
`

// TestCeilingBoundsTheServer: at load, with file and line; a signed ceiling cannot be left out, and is kept over a restart.
func TestCeilingBoundsTheServer(t *testing.T) {
	f, alice, bob := signedServer(t)
	carol := f.author("carol")
	f.configure("ceiling:\n" + signers("1", carol))
	f.fails(string(bundle.Unsigned))
	f.putFile("ceiling/all.yaml", []byte(lid))
	f.sign("ceiling", alice)
	f.fails(string(bundle.Unknown))
	if _, err := MakeBundle(BundleOptions{Dir: filepath.Join(f.dir, "ceiling"), TrustDomain: "company.com", Replace: true, Again: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := SignBundle(filepath.Join(f.dir, "ceiling"), carol.file, nil); err != nil {
		t.Fatal(err)
	}
	f.start()
	ceiling := f.srv.rev.Load().ceiling
	if ceiling == "" {
		t.Fatal("there is no ceiling")
	}
	wide := strings.Replace(f.files, "ttl: 5m", "ttl: 6m", 1)
	f.write(wide)
	f.sign(dirConfig, alice, bob)
	f.refused("a ttl above the ceiling", "story.yaml:37: permission write exceeds ceiling all: ttl 6m0s is more than 5m0s")
	f.putFile("ceiling/all.yaml", []byte(strings.Replace(lid, "ttl: 5m", "ttl: 1h", 1)))
	f.refused("a raised ceiling", string(bundle.Changed))
	if err := os.RemoveAll(filepath.Join(f.dir, "ceiling")); err != nil {
		t.Fatal(err)
	}
	f.refused("no ceiling", string(bundle.Unsigned))
	f.restart()
	if r := f.srv.rev.Load(); r.ceiling != ceiling || r.version != 1 {
		t.Errorf("after a restart: ceiling %s, version %d", r.ceiling, r.version)
	}
	f.putFile("ceiling/all.yaml", []byte(strings.Replace(lid, "ttl: 5m", "ttl: 1h", 1)))
	b, err := bundle.New(bundle.OfCeiling, "company.com", map[string][]byte{"all.yaml": []byte(lid)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.putFile("ceiling/bundle.json", b.Bytes())
	f.sign("ceiling", carol)
	var out api.Applied
	if f.refused("made from another", string(bundle.Taken)); f.srv.rev.Load().ceiling != ceiling {
		t.Error("the ceiling moved")
	}
	b, err = bundle.Parse(f.srv.storedCeiling())
	if err != nil {
		t.Fatal(err)
	}
	f.putFile("ceiling/bundle.json", b.Bytes())
	f.sign("ceiling", carol)
	if f.must("/v1/apply", nil, &out); out.Version != 2 || out.Changes[len(out.Changes)-1].Of != "ceiling" {
		t.Errorf("with a raised ceiling: %+v", out)
	}
}

func (s *Server) storedCeiling() []byte {
	r, _ := s.store.ActiveRevision()
	return r.Ceiling.Bundle.Envelope
}

// TestAppliedIsOnRecord: version, signers and what changed stand in the ledger, and a comparison applies nothing.
func TestAppliedIsOnRecord(t *testing.T) {
	f, alice, bob := signedServer(t)
	f.write(strings.Replace(f.files, "ttl: 5m", "ttl: 4m", 1))
	f.sign(dirConfig, alice, bob)
	var compared, out api.Applied
	before := f.srv.rev.Load()
	f.must("/v1/apply/compare", api.Compare{Files: map[string][]byte{"story.yaml": []byte(strings.Replace(f.files, "ttl: 5m", "ttl: 9m", 1))}}, &compared)
	if compared.Changes[0].What != "widened" || compared.Refused == "" || !compared.DryRun || f.srv.rev.Load() != before {
		t.Errorf("compared: %+v", compared)
	}
	f.must("/v1/apply", nil, &out)
	var list api.List[api.Entry]
	if err := f.admin.Get(t.Context(), "/v1/ledger", map[string][]string{"kind": {"policy.activated"}}, &list); err != nil {
		t.Fatal(err)
	}
	var e struct{ Data policyData }
	if err := json.Unmarshal(list.Items[len(list.Items)-1].Event, &e); err != nil {
		t.Fatal(err)
	}
	if d := e.Data; d.Version != 2 || strings.Join(d.Signers, " ") != "alice bob" || d.Manifest == "" || len(d.Changes) != 1 || d.Changes[0].What != "narrowed" {
		t.Errorf("on record: %+v", d)
	}
}
