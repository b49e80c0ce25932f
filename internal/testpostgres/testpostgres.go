// SPDX-License-Identifier: Apache-2.0

// Package testpostgres starts a real PostgreSQL server for tests, benchmarks and demonstrations: the distribution's own
// programs, as an ordinary user, in a temporary folder, on loopback and a Unix socket. It is test support and part of no
// product path. Start owns the process and one goroutine that waits for it; Stop waits for both.
package testpostgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrMissing says that the server's programs are not on this machine.
var ErrMissing = errors.New("PostgreSQL 15 or later is not installed: its initdb and postgres are in no folder that was looked in")

// Config says how the server runs.
type Config struct {
	Durable  bool              // every commit waits for the disk, as in production; else tests are faster
	Settings map[string]string // further settings of postgresql.conf
	HBA      string            // pg_hba.conf; empty: passwords (SCRAM) for all but the administrator, who comes by the socket
}

// Server is a running server. Its administrator is the role "postgres", without a password, by the socket alone.
type Server struct {
	Dir    string // of the socket, the data (pgdata) and the log (log)
	Port   int
	Bin    string // folder of the server's programs
	cfg    Config
	user   *syscall.Credential
	cmd    *exec.Cmd
	output bytes.Buffer
	done   chan error
	once   sync.Once
	err    error
}

// Bin returns the folder of the newest server programs on this machine.
func Bin() (string, error) {
	folders, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	version := func(f string) int { n, _ := strconv.Atoi(filepath.Base(filepath.Dir(f))); return n }
	slices.SortFunc(folders, func(a, b string) int { return version(b) - version(a) })
	for _, f := range append(folders, "/usr/pgsql/bin", "/usr/local/pgsql/bin", "/opt/homebrew/bin", "/usr/local/bin", "/usr/bin") {
		if _, err := os.Stat(filepath.Join(f, "initdb")); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(f, "postgres")); err == nil {
			return f, nil
		}
	}
	return "", ErrMissing
}

// Start makes a cluster of its own and returns when it answers, at the latest when ctx ends. The server outlives ctx: call Stop.
func Start(ctx context.Context, cfg Config) (s *Server, err error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	s = &Server{Bin: bin, cfg: cfg}
	if s.Dir, err = os.MkdirTemp("", "remit-pg-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if os.Geteuid() == 0 { // the server refuses to be root
		s.user = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := os.Chown(s.Dir, 65534, 65534); err != nil {
			return nil, err
		}
	}
	init := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	init.Dir, init.SysProcAttr = s.Dir, &syscall.SysProcAttr{Credential: s.user}
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	hba := cfg.HBA
	if hba == "" {
		hba = "local all postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"
	}
	if err := os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(hba), 0o644); err != nil { //nolint:gosec // the server's user reads it
		return nil, err
	}
	return s, s.Restart(ctx)
}

func (s *Server) data() string { return filepath.Join(s.Dir, "pgdata") }

// Restart stops the server, as a crash would if it runs, and starts it again on the same data and port.
func (s *Server) Restart(ctx context.Context) error {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		<-s.done
		s.cmd = nil
	}
	if s.Port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.Port = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return err
		}
	}
	s.cmd = exec.Command(filepath.Join(s.Bin, "postgres"), s.arguments()...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.Dir, &s.output, &s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user, Pdeathsig: syscall.SIGQUIT}
	s.done = make(chan error, 1)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the server gets its signal when the thread that started it ends
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.done <- s.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		s.cmd = nil
		return err
	}
	return s.answers(ctx)
}

func (s *Server) arguments() []string {
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(s.Port), "unix_socket_directories": s.Dir, "max_connections": "100",
		"shared_buffers": "32MB", "password_encryption": "scram-sha-256", "logging_collector": "on", "log_destination": "jsonlog",
		"log_directory": filepath.Join(s.Dir, "log"), "log_filename": "postgres.log", "log_statement": "none", "timezone": "UTC",
	}
	if s.version() < 15 {
		settings["log_destination"] = "csvlog"
	}
	if !s.cfg.Durable {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
	}
	for k, v := range s.cfg.Settings {
		settings[k] = v
	}
	args := []string{"-D", s.data()}
	for k, v := range settings {
		args = append(args, "-c", k+"="+v)
	}
	return args
}

func (s *Server) version() int {
	b, _ := os.ReadFile(filepath.Join(s.data(), "PG_VERSION"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		check := exec.CommandContext(ctx, filepath.Join(s.Bin, "pg_isready"), "-q", "-h", s.Dir, "-p", strconv.Itoa(s.Port))
		check.SysProcAttr = &syscall.SysProcAttr{Credential: s.user}
		check.Dir = "/"
		if check.Run() == nil {
			return nil
		}
		select {
		case err := <-s.done:
			s.cmd = nil
			return fmt.Errorf("start PostgreSQL: %w: %s", err, &s.output)
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Admin is a connection string of the administrator to a database, by the socket.
func (s *Server) Admin(database string) string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable", s.Dir, s.Port, database)
}

// Command is one of the server's own programs, as the server's user. In its environment are only PATH and env.
func (s *Server) Command(ctx context.Context, name string, env []string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(s.Bin, name), args...)
	c.Dir, c.Env = s.Dir, append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.user}
	return c
}

// Log is the file into which the server writes its log, one JSON object in a line.
func (s *Server) Log() string { return filepath.Join(s.Dir, "log", "postgres.json") }

// Stop ends the server, its sessions first, and removes its folder.
func (s *Server) Stop() error {
	s.once.Do(func() {
		if s.cmd != nil {
			_ = s.cmd.Process.Signal(syscall.SIGINT)
			select {
			case <-s.done:
			case <-time.After(10 * time.Second):
				_ = s.cmd.Process.Signal(syscall.SIGQUIT)
				<-s.done
			}
		}
		s.err = os.RemoveAll(s.Dir)
	})
	return s.err
}
