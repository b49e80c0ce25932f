// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) credentialPostgres() *cobra.Command {
	q := &ask{action: "postgres.select"}
	var dir string
	cmd := &cobra.Command{Use: "postgres [--dir DIR | -- COMMAND [ARG...]]", Short: "A database login, as URL, as libpq files, or for a command",
		Long: `Asks for a grant at a PostgreSQL target and hands over the login:
as a URL with its password on standard output; with --dir as libpq's files (pg_service.conf, pgpass, ca.pem) in that folder, and the variables
that name them on standard output; or to a command, which is executed in this process's place and finds the same files in PGSERVICEFILE,
PGSERVICE and PGPASSFILE, and a DATABASE_URL without the password. Those files are in memory: nothing of them is on a disk, in the
environment or in an argument.`,
		Example: "  remit credential postgres --for read-rows --arg 'columns=[\"id\",\"amount\"]' -- psql -c 'TABLE transactions'"}
	args := asker(cmd, q)
	cmd.Flags().StringVar(&dir, "dir", "", "folder for the files, of which only its owner may know")
	cmd.Flags().SetInterspersed(false)
	cmd.RunE = func(c *cobra.Command, command []string) error {
		if q.permission != "" && !c.Flags().Changed("action") {
			q.action = ""
		}
		if err := q.setArgs(*args); err != nil {
			return err
		}
		if dir != "" && len(command) > 0 {
			return badUse("--dir and a command exclude each other")
		}
		path := ""
		if len(command) > 0 {
			var err error
			if path, err = exec.LookPath(command[0]); err != nil {
				return badUse("%v", err)
			}
		}
		got, err := q.request(c.Context())
		if err != nil {
			return err
		}
		l, err := got.login()
		switch {
		case err != nil:
			return err
		case path != "":
			return l.execute(path, command)
		case dir != "":
			return a.writeLogin(l, dir)
		}
		fmt.Fprintln(a.out, l.url(url.UserPassword(l.user, l.password), nil))
		return nil
	}
	return cmd
}

// login is what libpq needs to log in.
type login struct {
	host, port, database, user, sslmode, ca string
	password                                string
}

func (g *answer) login() (*login, error) {
	f := g.Credential
	l := &login{f["host"], f["port"], f["database"], f["user"], f["sslmode"], f["ca"], g.AccessToken}
	if !strings.HasSuffix(g.Type, ":postgres") || l.host == "" || l.user == "" {
		return nil, badUse("what was granted is no database login").hint("name a permission of a postgres target")
	}
	for _, v := range []string{l.host, l.port, l.database, l.user, l.sslmode, l.password} {
		if strings.ContainsAny(v, "\n\r\x00") {
			return nil, errors.New("the token endpoint's answer is not understood")
		}
	}
	return l, nil
}

// url is a connection URI as libpq, pgx and others read it.
func (l *login) url(user *url.Userinfo, more url.Values) string {
	q := url.Values{"sslmode": {l.sslmode}}
	for k, v := range more {
		q[k] = v
	}
	u := url.URL{Scheme: "postgresql", User: user, Host: l.host + ":" + l.port, Path: "/" + l.database}
	if filepath.IsAbs(l.host) {
		u.Host = ""
		q.Set("host", l.host)
		q.Set("port", l.port)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// files are the contents of libpq's files, by name; at says where each will be.
func (l *login) files(at func(name string) string) map[string]string {
	service := fmt.Sprintf("[remit]\nhost=%s\nport=%s\ndbname=%s\nuser=%s\nsslmode=%s\n", l.host, l.port, l.database, l.user, l.sslmode)
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`)
	out := map[string]string{"pgpass": "*:*:*:" + escape.Replace(l.user) + ":" + escape.Replace(l.password) + "\n"}
	if l.ca != "" {
		out["ca.pem"] = l.ca
		service += "sslrootcert=" + at("ca.pem") + "\n"
	}
	out["pg_service.conf"] = service
	return out
}

// variables name the files. None holds the password.
func (l *login) variables(at func(name string) string) []string {
	q := url.Values{"passfile": {at("pgpass")}}
	if l.ca != "" {
		q.Set("sslrootcert", at("ca.pem"))
	}
	return []string{"PGSERVICEFILE=" + at("pg_service.conf"), "PGSERVICE=remit", "PGPASSFILE=" + at("pgpass"), "DATABASE_URL=" + l.url(url.User(l.user), q)}
}

func (a *app) writeLogin(l *login, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return badUse("--dir: %v", err)
	}
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return badUse("--dir %s is no folder of its owner alone", dir).hint("mkdir -m 700 %s", dir)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range l.files(at) {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the login: %w", err)
		}
	}
	for _, v := range l.variables(at) {
		fmt.Fprintln(a.out, v)
	}
	return nil
}

// execute becomes the command. The files are in memory, and found through descriptors that it inherits.
func (l *login) execute(path string, argv []string) error {
	places := map[string]string{}
	at := func(name string) string { return places[name] }
	for _, name := range []string{"ca.pem", "pgpass", "pg_service.conf"} {
		text, ok := l.files(at)[name]
		if !ok {
			continue
		}
		fd, err := inMemory(name, text)
		if err != nil {
			return fmt.Errorf("keep the login in memory: %w", err)
		}
		places[name] = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "PG") && !strings.HasPrefix(e, "PGTZ=") && !strings.HasPrefix(e, "PGCLIENTENCODING=") || strings.HasPrefix(e, "DATABASE_URL=")
	})
	return syscall.Exec(path, argv, append(env, l.variables(at)...)) //nolint:gosec // it is what the user asks for
}

// inMemory makes a file that has no name, that nobody can change, and that the next program inherits.
func inMemory(name, text string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_ALLOW_SEALING)
	if err != nil {
		return 0, err
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return 0, err
	}
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return 0, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	return fd, err
}
