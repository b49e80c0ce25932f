// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"remit/internal/config"
)

// directory writes files into a new folder that only its owner can write.
func directory(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for name, body := range files {
		full := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		must(t, os.WriteFile(full, body, 0o644))
		must(t, os.Chmod(full, 0o644))
	}
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	files := read(t, "every")
	dir := directory(t, files)
	must(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte("not read"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, ".hidden.yaml"), []byte("not: read"), 0o644))
	// As a Kubernetes ConfigMap is mounted: links that stay inside.
	must(t, os.Mkdir(filepath.Join(dir, "..data"), 0o755))
	must(t, os.Rename(filepath.Join(dir, "agents.yaml"), filepath.Join(dir, "..data", "agents.yaml")))
	must(t, os.Symlink(filepath.Join("..data", "agents.yaml"), filepath.Join(dir, "agents.yaml")))
	set, err := config.Load(dir, company)
	if err != nil {
		t.Fatal(err)
	}
	if set.Digest != parse(t, "every").Digest {
		t.Error("loaded and parsed differ")
	}
}

func TestLoadRefuses(t *testing.T) {
	outside := directory(t, map[string][]byte{"x.yaml": []byte("{kind: Tool, name: x}\n"), "f/y.yaml": nil})
	for _, c := range []struct {
		name string
		do   func(dir string) error
		want string
	}{
		{"link out", func(dir string) error {
			return os.Symlink(filepath.Join(outside, "x.yaml"), filepath.Join(dir, "l.yaml"))
		}, "l.yaml: "},
		{"relative link out", func(dir string) error { return os.Symlink("../x.yaml", filepath.Join(dir, "l.yaml")) }, "l.yaml: "},
		{"file that all write", func(dir string) error { return os.Chmod(filepath.Join(dir, "a.yaml"), 0o666) }, "a.yaml: others can write it (mode 0666): chmod go-w"},
		{"file that the group writes", func(dir string) error { return os.Chmod(filepath.Join(dir, "a.yaml"), 0o664) }, "a.yaml: others can write it"},
		{"folder that all write", func(dir string) error { return os.Chmod(dir, 0o777) }, ".: others can write it"},
		{"inner folder that all write", func(dir string) error { return os.Chmod(filepath.Join(dir, "in"), 0o777) }, "in: others can write it"},
		{"file of another user", func(dir string) error { return os.Chown(filepath.Join(dir, "a.yaml"), 4321, -1) }, "a.yaml: it belongs to another user"},
		{"pipe", func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "p.yaml"), 0o600) }, "p.yaml: this is neither a file nor a folder"},
		{"deep", func(dir string) error { return os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", 10)), 0o755) }, "deeper than 8 folders"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := directory(t, map[string][]byte{"a.yaml": []byte("{kind: Tool, name: a}\n"), "in/b.yaml": nil})
			if err := c.do(dir); os.IsPermission(err) && os.Geteuid() != 0 {
				return // only root can give a file away
			} else {
				must(t, err)
			}
			if set, err := config.Load(dir, company); set != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := config.Load(filepath.Join(outside, "none"), company); err == nil {
		t.Error("a missing directory loads")
	}
}

// driver is a Config as drivers have it.
type driver struct {
	Server  string            `yaml:"server"`
	Names   []string          `yaml:"namespaces"`
	Timeout time.Duration     `yaml:"timeout"`
	Token   config.SecretRef  `yaml:"token"`
	Same    map[string]string `yaml:"same"`
	Inner   *struct {
		Port uint16 `yaml:"port"`
		On   bool   `yaml:"on"`
	} `yaml:"inner"`
	Now func() time.Time `yaml:"-"`
}

// TestFoldersAbove: who can write a folder above could put another directory in the place of this one.
func TestFoldersAbove(t *testing.T) {
	above := t.TempDir()
	dir := filepath.Join(above, "config")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("{kind: Tool, name: x}\n"), 0o644))
	for mode, want := range map[os.FileMode]string{0o755: "", 0o777 | os.ModeSticky: "", 0o777: "replace the configuration", 0o775: "replace the configuration"} {
		must(t, os.Chmod(above, mode))
		_, err := config.Load(dir, company)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

// TestForeignOwner: what belongs to another user, that user can write.
func TestForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	for _, give := range []string{".", "config", "config/a.yaml"} {
		above := t.TempDir()
		dir := filepath.Join(above, "config")
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("{kind: Tool, name: x}\n"), 0o644))
		if _, err := config.Load(dir, company); err != nil {
			t.Fatal(err)
		}
		must(t, os.Chown(filepath.Join(above, give), 4001, 4001))
		if _, err := config.Load(dir, company); err == nil || !strings.Contains(err.Error(), "belongs to another user") {
			t.Errorf("%s given away: %v", give, err)
		}
	}
}

func TestDecode(t *testing.T) {
	parse := func(text string) error {
		set, err := config.Parse(map[string][]byte{"a.yaml": []byte("kind: Target\nname: x\ntype: t\n" + text)}, company)
		must(t, err)
		var d driver
		return set.Targets["x"].Decode(&d)
	}
	if err := parse("server: s\nnamespaces: [a, b]\ntimeout: 5s\ntoken: {env: X}\nsame: {a: b}\ninner: {port: 443, on: true}\n"); err != nil {
		t.Error(err)
	}
	if err := parse(""); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"sever: s\n":                 `a.yaml:4: unknown key "sever": the keys here are server, namespaces, timeout, token, same, inner`,
		"now: x\n":                   "unknown key",
		"server: 5\n":                "a.yaml:4: expected text, found the number 5: put it in quotes",
		"\ntimeout: 5\n":             "a.yaml:5: expected a duration",
		"inner: {port: 70000}\n":     "a whole number of 16 bits from 0",
		"inner: {on: yes}\n":         "expected true or false",
		"namespaces: a\n":            "expected a list",
		"same: [a]\n":                "expected a mapping",
		"token: {file: a, env: b}\n": "write exactly one of file, env",
		"server: 5\nsever: s\n":      "a.yaml:5: unknown key",
	} {
		if err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// TestLiteralSecret is S7: configuration holds references to secrets, and an error does not repeat the secret.
func TestLiteralSecret(t *testing.T) {
	set, err := config.Parse(map[string][]byte{"a.yaml": []byte("kind: Target\nname: x\ntype: t\ntoken: hunter2-very-secret\n")}, company)
	must(t, err)
	var d driver
	err = set.Targets["x"].Decode(&d)
	if err == nil || !strings.Contains(err.Error(), "a.yaml:4: expected a mapping with file, env") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestSecretRef(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "s")
	must(t, os.WriteFile(name, []byte("value\n"), 0o600))
	t.Setenv("REMIT_TEST_SECRET", "other")
	for _, c := range []struct {
		ref  config.SecretRef
		want string
	}{{config.SecretRef{File: name}, "value"}, {config.SecretRef{Env: "REMIT_TEST_SECRET"}, "other"}} {
		if s, err := c.ref.Resolve(); err != nil || s.Reveal() != c.want {
			t.Errorf("%+v: %v", c.ref, err)
		}
	}
	for _, r := range []config.SecretRef{{}, {File: name, Env: "X"}, {Env: "REMIT_TEST_NO_SUCH"}, {File: name + "x"}, {File: dir}} {
		if _, err := r.Resolve(); err == nil {
			t.Errorf("%+v resolves", r)
		}
	}
	must(t, os.Chmod(name, 0o644))
	if _, err := (config.SecretRef{File: name}).Resolve(); err == nil || !strings.Contains(err.Error(), "others can read") {
		t.Errorf("a secret that all can read: %v", err)
	}
}

func TestServer(t *testing.T) {
	s, err := config.ParseServer("remit.yaml", config.DefaultServer("company.com", "ci", 1000, ""), "/srv/remit")
	if err != nil {
		t.Fatal(err)
	}
	if s.Data != "/srv/remit" || s.Config != "/srv/remit/config" || s.Admin != "/srv/remit/run/admin.sock" || s.Workload != "/srv/remit/run/workload.sock" ||
		s.HTTPS != "127.0.0.1:8443" || s.Operators[0].Name != "operator/ci" || s.Operators[0].UID != 1000 || s.AllowOwnUID ||
		s.Issuer != "https://localhost:8443" || s.GrantIssuer != "https://localhost:8443/grants" || s.TrustDomain != company {
		t.Errorf("%+v", s)
	}
	for _, https := range []string{"[::1]:0", "remit.company.com:443", ":8443", "0.0.0.0:1", "10.1.2.3:8443"} {
		if _, err := config.ParseServer("remit.yaml", config.DefaultServer("company.com", "ci", 0, https), "/srv/remit"); err != nil {
			t.Errorf("%s: %v", https, err)
		}
	}
	const base = "trust_domain: company.com\noperators: [{name: ci, uid: 0, roles: [admin]}]\n"
	for text, want := range map[string]string{
		base + "dat: x\n":                                                             `remit.yaml:3: unknown key "dat"`,
		"trust_domain: company.com\n":                                                 "operators is missing",
		"trust_domain: company.com\noperators: []\n":                                  "operators is empty",
		base + "listen: {https: nowhere}\n":                                           "write HOST:PORT",
		base + "listen: {names: []}\n":                                                "names is empty",
		base + "issuer: {url: 'http://x'}\n":                                          "write an https URL",
		base + "issuer: {url: 'https://x'}\ngrant_issuer: {url: 'https://x/'}\n":      "issuer and grant_issuer are one",
		base + "sockets: {admin: a.sock, workload: ./a.sock}\n":                       "are one path",
		base + "sockets: {admin: " + strings.Repeat("a", 120) + "}\n":                 "at most 107 fit",
		"trust_domain: company.com\noperators: [{name: ci, uid: 0, roles: [root]}]\n": "write admin, author",
		"trust_domain: company.com\noperators: [{name: ci, roles: [admin]}]\n":        "uid is missing",
		"trust_domain: a b\noperators: [{name: ci, uid: 0, roles: [admin]}]\n":        "write a trust domain",
		strings.Replace(base, "]\n", ", {name: x, uid: 0, roles: [admin]}]\n", 1):     "stands twice",
		base + "---\n" + base:                                                         "expected one document, found 2",
		"":                                                                            "expected one document, found 0",
	} {
		if _, err := config.ParseServer("remit.yaml", []byte(text), "/srv/remit"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestLoadServer(t *testing.T) {
	dir := directory(t, map[string][]byte{"remit.yaml": config.DefaultServer("company.com", "ci", 0, "")})
	name := filepath.Join(dir, "remit.yaml")
	if s, err := config.LoadServer(name); err != nil || s.Data != dir {
		t.Errorf("%+v, %v", s, err)
	}
	must(t, os.Chmod(name, 0o666))
	if _, err := config.LoadServer(name); err == nil || !strings.Contains(err.Error(), "others can write it") {
		t.Errorf("a file that all write: %v", err)
	}
}

func FuzzParseServer(f *testing.F) {
	f.Add(config.DefaultServer("company.com", "ci", 0, ""))
	f.Fuzz(func(t *testing.T, body []byte) {
		if s, err := config.ParseServer("remit.yaml", body, "/srv"); err == nil && s == nil {
			t.Fatal("nothing")
		}
	})
}

func TestJobs(t *testing.T) {
	body := string(config.DefaultServer("company.com", "ci", 1000, ""))
	job := "jobs:\n- {name: NAME, issuer: \"https://ci.example\", audience: \"https://remit.company.com\", claims: [{claim: CLAIM, is: \"4711\"}]}\n"
	for name, row := range map[string]struct{ name, claim, want string }{
		"good":                 {"release", "repository_id", ""},
		"a name of a person":   {"ci", "repository_id", "stands twice"},
		"nothing that lasts":   {"release", "repository", "no immutable id"},
		"a subject, by names":  {"release", "sub", "no immutable id"},
		"no label for a name":  {"Release", "repository_id", "is not right here"},
		"an id of its project": {"release", "project_id", ""},
	} {
		s, err := config.ParseServer("remit.yaml", []byte(body+strings.NewReplacer("NAME", row.name, "CLAIM", row.claim).Replace(job)), "/srv/remit")
		switch {
		case row.want == "" && (err != nil || len(s.Jobs) != 1 || s.Jobs[0].Name != "operator/release" || s.Jobs[0].Claims[row.claim] != "4711"):
			t.Errorf("%s: %+v %v", name, s, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}
