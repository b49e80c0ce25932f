// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"remit"
)

func FuzzTokenID(f *testing.F) {
	enc := func(s string) string { return "h." + base64.RawURLEncoding.EncodeToString([]byte(s)) + ".s" }
	f.Add(enc(`{"jti":"a"}`))
	f.Add(enc(`{"jti":1}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := tokenID(s)
		if (err == nil) == (id == "") || len(id) > 128 {
			t.Errorf("%q: %q %v", s, id, err)
		}
	})
}

// Whatever is in a scope: it is refused, or its rules name one namespace's objects and never a wildcard, a secret or any name.
func FuzzScope(f *testing.F) {
	digest := "@sha256:" + strings.Repeat("1", 64)
	f.Add(actionApply, []byte(`{"namespace":"production","kind":"Deployment","name":"foo","image":"a/b`+digest+`","replicas":3,"command":["x"]}`))
	f.Add(actionApply, []byte(`{"namespace":"production","kind":"CronJob","name":"*","images":["a/b`+digest+`"],"env":{"A":"1"},"labels":{"a/b":"c"}}`))
	f.Add(actionApply, []byte(`{"namespace":"production","kind":"Deployment","name":"foo","image":"a/b`+digest+`","manifest":{"apiVersion":"apps/v1",
		"kind":"Deployment","metadata":{"name":"foo"},"spec":{"template":{"spec":{"containers":[{"name":"a","image":"a/b`+digest+`","ports":[{"containerPort":1}]}]}}}}}`))
	f.Add(actionDelete, []byte(`{"namespace":"production","kind":"Job","name":"foo"}`))
	f.Fuzz(func(t *testing.T, action string, body []byte) {
		var args remit.Args
		if json.Unmarshal(body, &args) != nil {
			return
		}
		s, err := parseScope(action, args)
		if err != nil {
			if remit.CodeOf(err) != remit.CodeInvalid {
				t.Error(err)
			}
			return
		}
		for _, r := range s.rules() {
			named := len(r.ResourceNames) > 0 && !slices.Contains(r.ResourceNames, "") && !slices.Contains(r.ResourceNames, "*")
			free := slices.Equal(r.Verbs, []string{"create"}) || action == actionList
			if !named && !free || slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") || slices.Contains(r.APIGroups, "*") {
				t.Errorf("%s %s: %+v", action, body, r)
			}
		}
	})
}

// The spelling is injective: no two lists of words are spelled alike.
func TestSpelling(t *testing.T) {
	seen := map[string][]string{}
	for _, words := range [][]string{{"a"}, {"a", ""}, {"", "a"}, {"a1:b"}, {"a", "b"}, {"1:a"}, {"ü"}, {"ü1:a"}, {"ü", "a"}, {}} {
		if other, ok := seen[spell(words)]; ok {
			t.Errorf("%q and %q are spelled %q", words, other, spell(words))
		}
		seen[spell(words)] = words
	}
	if spell([]string{"ü", "ab"}) != "1:ü2:ab" {
		t.Error(spell([]string{"ü", "ab"}))
	}
}
