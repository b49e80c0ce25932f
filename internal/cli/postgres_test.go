// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"remit/internal/testpostgres"
)

const envTestLogin = "TEST_LOGIN"

// executeLogin becomes a command with a login, as remit credential postgres -- COMMAND does once it has the answer.
func executeLogin(text string, argv []string) error {
	var g answer
	if err := json.Unmarshal([]byte(text), &g); err != nil {
		return err
	}
	_ = os.Unsetenv(envTestLogin)
	l, err := g.login()
	if err != nil {
		return err
	}
	return l.execute(argv[0], argv)
}

func loginOf(port int, password string) answer {
	return answer{AccessToken: password, Type: "urn:remit:token-type:postgres", Credential: map[string]string{"host": "127.0.0.1", "port": strconv.Itoa(port),
		"database": "postgres", "user": "remit_x_holder", "sslmode": "disable"}}
}

// TestPsqlFindsItsLogin: a real psql logs in with what it inherits, and neither its environment nor its arguments hold the password.
func TestPsqlFindsItsLogin(t *testing.T) {
	db, err := testpostgres.Start(t.Context(), testpostgres.Config{})
	if errors.Is(err, testpostgres.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Stop() //nolint:errcheck // a temporary folder
	const password = `it's:a\password`
	admin := db.Command(t.Context(), "psql", nil, db.Admin("postgres"), "-qc", `CREATE ROLE remit_x_holder LOGIN PASSWORD 'it''s:a\password'`)
	if out, err := admin.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, _ := json.Marshal(loginOf(db.Port, password))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	psql := filepath.Join(db.Bin, "psql")
	for _, args := range [][]string{{psql, "-AtX", "-c", "SELECT session_user", "-c", `\! env; tr '\0' ' ' < /proc/$PPID/cmdline`},
		{"/bin/sh", "-c", psql + ` -AtX "$DATABASE_URL" -c 'SELECT session_user'; env`}} {
		c := exec.Command(self, args...)
		c.Env = append(os.Environ(), envTestLogin+"="+string(text), "PGPASSWORD=somebody else's", "PGHOST=nowhere.invalid", "PGUSER=postgres")
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil || !strings.HasPrefix(string(out), "remit_x_holder\n") {
			t.Fatalf("%v: %s %s", err, out, &errs)
		}
		if strings.Contains(string(out), "password") || strings.Contains(string(out), "nowhere.invalid") {
			t.Errorf("the environment or the arguments say too much: %s", out)
		}
	}
}

func TestLoginRefusesOtherAnswers(t *testing.T) {
	for name, change := range map[string]func(*answer){
		"another type": func(a *answer) { a.Type = "urn:remit:token-type:kubernetes" },
		"no host":      func(a *answer) { a.Credential["host"] = "" },
		"two lines":    func(a *answer) { a.Credential["user"] = "x\nhost=elsewhere" },
	} {
		a := loginOf(5432, "secret")
		change(&a)
		if _, err := a.login(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestLoginAsFiles(t *testing.T) {
	g := loginOf(5432, "p:w")
	g.Credential["ca"], g.Credential["sslmode"], g.Credential["host"] = "a root", "verify-full", "db.example.com"
	l, err := g.login()
	if err != nil {
		t.Fatal(err)
	}
	open, dir := t.TempDir(), filepath.Join(t.TempDir(), "own")
	if err := errors.Join(os.Chmod(open, 0o755), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := &app{out: &out}
	if a.writeLogin(l, open) == nil {
		t.Error("written where others read")
	}
	if err := a.writeLogin(l, dir); err != nil {
		t.Fatal(err)
	}
	pass, err := os.ReadFile(filepath.Join(dir, "pgpass"))
	if err != nil || string(pass) != `*:*:*:remit_x_holder:p\:w`+"\n" {
		t.Errorf("%s %v", pass, err)
	}
	want := "DATABASE_URL=postgresql://remit_x_holder@db.example.com:5432/postgres?passfile=" // and more
	if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "p:w") || !strings.Contains(out.String(), "verify-full") {
		t.Errorf("%s", &out)
	}
}
