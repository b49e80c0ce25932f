// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"remit"
	"remit/internal/config"
)

var update = flag.Bool("update", false, "write the generated reference")

var company = spiffeid.RequireTrustDomainFromString("company.com")

// read takes a folder of testdata without Load's rules on who may write it, which a checkout need not meet.
func read(t testing.TB, folder string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	root := filepath.Join("testdata", folder)
	err := filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		files[filepath.ToSlash(rel)], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func parse(t testing.TB, folder string) *config.Set {
	t.Helper()
	set, err := config.Parse(read(t, folder), company)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("remit.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("remit.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate says whether the schema accepts every document of a file.
func validate(t testing.TB, s *jsonschema.Schema, body []byte) error {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader(body))
	for {
		var v any
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if v, err = jsonschema.UnmarshalJSON(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			return err
		}
	}
}

func TestExamples(t *testing.T) {
	s := schema(t)
	for _, folder := range []string{"deploy", "refund", "every"} {
		t.Run(folder, func(t *testing.T) {
			set := parse(t, folder)
			if set.Digest == "" || len(set.Workflows) != 1 || len(set.Files) == 0 {
				t.Fatalf("set %+v", set)
			}
			for name, body := range set.Files {
				if err := validate(t, s, body); filepath.Ext(name) == ".yaml" && err != nil {
					t.Errorf("the schema refuses %s: %v", name, err)
				}
			}
		})
	}
}

func TestDeploy(t *testing.T) {
	set := parse(t, "deploy")
	w := set.Workflows[0]
	if w.Start.Expires != 2*time.Hour || w.Start.By[0] != "operator/ci" || len(w.Parameters) != 4 || w.Stages[0].Expires != 30*time.Minute {
		t.Errorf("workflow %+v", w)
	}
	p := w.Stages[0].May[0]
	want := map[string]remit.Predicate{
		"namespace": {Kind: remit.PredicateEqual, Terms: []remit.Term{{Value: remit.StringValue("production")}}},
		"kind":      {Kind: remit.PredicateEqual, Terms: []remit.Term{{Value: remit.StringValue("Deployment")}}},
		"name":      {Kind: remit.PredicateEqual, Terms: []remit.Term{{Param: "app"}}},
		"image":     {Kind: remit.PredicateEqual, Terms: []remit.Term{{Param: "image"}}},
	}
	equalValues := cmp.Comparer(func(a, b remit.Value) bool { return a.Equal(b) })
	if diff := cmp.Diff(want, p.Where, equalValues); diff != "" {
		t.Error(diff)
	}
	needs := []remit.Requirement{
		{Kind: "scan", Source: "trivy-ci", ID: &remit.Term{Param: "scan"}, Of: &remit.Term{Param: "image"}, Worst: remit.SeverityMedium, Within: 24 * time.Hour},
		{Kind: "provenance", Source: "github-builds", Of: &remit.Term{Param: "image"}, Match: map[string]remit.Term{"repository": {Value: remit.StringValue("company/foo")}}},
		{Kind: "ticket", Source: "change-desk", ID: &remit.Term{Param: "ticket"}, Match: map[string]remit.Term{"state": {Value: remit.StringValue("approved")}}},
	}
	if diff := cmp.Diff(needs, p.Evidence, equalValues); diff != "" {
		t.Error(diff)
	}
	h := p.Hours
	if h.From != 480 || h.To != 1080 || h.Zone.String() != "Europe/Berlin" || h.Days != [7]bool{1: true, 2: true, 3: true, 4: true, 5: true} {
		t.Errorf("hours %+v", h)
	}
	if p.TTL != 5*time.Minute || p.Line != "workflow.yaml:15" || p.Who != "agent/deploy" {
		t.Errorf("permission %+v", p)
	}
	ticket := w.Parameters[3]
	if ticket.Name != "ticket" || ticket.Pattern.MatchString("xCHG-1") || ticket.Pattern.MatchString("CHG-1x") || !ticket.Pattern.MatchString("CHG-1") {
		t.Errorf("parameter %+v", ticket)
	}
	a := set.Agents["agent/deploy"]
	if a.ID.String() != "spiffe://company.com/agent/deploy" || a.TTL != 10*time.Minute || len(a.Attest[0].Selectors) != 3 || !a.Launch.OwnUID {
		t.Errorf("agent %+v", a)
	}
	if o := set.Targets["production-cluster"]; !o.Production || o.Type != "kubernetes" || o.File != "target.yaml" || o.Line != 1 {
		t.Errorf("target %+v", o)
	}
}

func TestEvery(t *testing.T) {
	set := parse(t, "every")
	w := set.Workflows[0].Stages[0].May[0].Where
	for name, want := range map[string]remit.PredicateKind{"text": "equal", "either": "subset", "free": "any", "low": "range", "like": "pattern", "inner": "object", "nothing": "object"} {
		if w[name].Kind != want {
			t.Errorf("%s: %s, want %s", name, w[name].Kind, want)
		}
	}
	if got := w["price"].Terms[0]; got.Value.Text() != "$5" || got.Param != "" {
		t.Errorf("$$: %+v", got)
	}
	if got := w["number"].Terms[0].Value.Text(); got != "7.5" {
		t.Errorf("number %s", got)
	}
	if re := w["like"].Pattern; re.MatchString("v1x") || !re.MatchString("v1") {
		t.Errorf("pattern %s", re)
	}
	apply := set.Workflows[0].Stages[0].May[1]
	if apply.Where["earlier"].From != "ask" || apply.Where["name"].Terms[0].Call != "text" || !apply.Hours.Days[time.Saturday] || apply.Limits["rows"] != 500 {
		t.Errorf("apply %+v", apply)
	}
	when := apply.Evidence[5].Approval.When["count"]
	if when.Kind != remit.PredicateRange || when.Above == nil || when.Above.Text() != "100" || when.Min == nil || apply.Evidence[5].Approval.People != 2 {
		t.Errorf("approval %+v", apply.Evidence[5].Approval)
	}
	if len(set.Rules) != 2 || set.Rules[0].File != "rules/freeze.rego" || !strings.HasPrefix(set.Rules[1].Module, "package remit.night") {
		t.Errorf("rules %+v", set.Rules)
	}
	if e := set.EnforcementPoints["pep/gate"]; !e.Assert || len(e.TrustDomains) != 2 {
		t.Errorf("enforcement point %+v", e)
	}
}

func TestDigests(t *testing.T) {
	set := parse(t, "deploy")
	files := read(t, "deploy")
	files["workflow.yaml"] = append([]byte("# a remark\n"), files["workflow.yaml"]...)
	remarked, err := config.Parse(files, company)
	if err != nil {
		t.Fatal(err)
	}
	if remarked.Digest == set.Digest || remarked.Workflows[0].Digest != set.Workflows[0].Digest {
		t.Error("a remark must change the digest of the set and not that of the workflow")
	}
	files["workflow.yaml"] = bytes.Replace(files["workflow.yaml"], []byte("ttl: 5m"), []byte("ttl: 6m"), 1)
	changed, err := config.Parse(files, company)
	if err != nil {
		t.Fatal(err)
	}
	if changed.Workflows[0].Digest == set.Workflows[0].Digest {
		t.Error("another ttl must change the digest of the workflow")
	}
	a, _ := config.Parse(map[string][]byte{"a.yaml": nil, "b.yaml": []byte("# x")}, company)
	b, _ := config.Parse(map[string][]byte{"a.yaml": []byte("# x"), "b.yaml": nil}, company)
	if a.Digest == b.Digest {
		t.Error("which file holds what must be in the digest")
	}
}

func TestReference(t *testing.T) {
	name := filepath.Join("..", "..", "docs", "reference", "files.md")
	if *update {
		if err := os.WriteFile(name, []byte(config.Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(b), config.Reference()); diff != "" {
		t.Errorf("docs/reference/files.md is old; run with -update:\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	for _, folder := range []string{"deploy", "refund", "every"} {
		for name, body := range read(f, folder) {
			if filepath.Ext(name) == ".yaml" {
				f.Add(body)
			}
		}
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("kind: Workflow\nname: x\nstages: [{name: a, may: [{where: {x: {y: {z: [$a]}}}}]}]\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		set, err := config.Parse(map[string][]byte{"x.yaml": body}, company)
		if (set == nil) == (err == nil) {
			t.Fatal("a set and an error, or neither")
		}
		if err == nil {
			return
		}
		for _, line := range strings.Split(err.Error(), "\n") {
			if !strings.HasPrefix(line, "x.yaml") && !strings.HasPrefix(line, "and ") && !strings.HasPrefix(line, "  ") {
				t.Fatalf("no place in %q", line)
			}
		}
		_ = fmt.Sprintf("%+v", set)
	})
}
