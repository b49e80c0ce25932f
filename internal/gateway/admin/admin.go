// SPDX-License-Identifier: Apache-2.0

// Package admin serves the management API on a Unix socket (S2), and over HTTPS to people who logged in. Its principals are
// Persons: on the socket the peer's uid, as the kernel states it, names an operator of remit.yaml; over HTTPS a session does. No
// agent, tool or run token can hold a role here. Every call is decided by role; every refused call and every call that changes
// something is recorded with its outcome, and over HTTPS every call. What the calls do stands in a table that the server passes
// in. The package starts no goroutine but the HTTP server's own.
package admin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/gateway"
)

// maxBody bounds a request's body: a statement of 1 MiB in base64 with room.
const maxBody = 4 << 20

// Op is one call.
type Op struct {
	Pattern string // of http.ServeMux: "POST /v1/runs/{id}/advance"
	Name    string // "run.advance", as the ledger names it
	Role    string // a role that the Person needs; empty: any operator, and Do decides the rest
	Writes  bool   // changes something, so it is recorded
	Local   bool   // needs something of this host, so it is not served over HTTPS
	Do      func(ctx context.Context, c Call) (any, error)
}

// Call is one call in flight.
type Call struct {
	Who   remit.Principal
	Path  func(name string) string // a wildcard of the pattern
	Query url.Values
	body  []byte
}

// Decode reads the body strictly into v.
func (c Call) Decode(v any) error { return gateway.DecodeBody(c.body, v) }

// Config of the socket; all but Now are required.
type Config struct {
	Ops    []Op
	Person func(uid uint32) (name remit.Name, roles []string, ok bool)
	Record func(ctx context.Context, e remit.Event) error
	Log    *slog.Logger
	Now    func() time.Time
}

// Server answers on the admin socket.
type Server struct {
	cfg  Config
	http *http.Server
}

type personKey struct{}

// New builds the server; Serve runs it.
func New(cfg Config) (*Server, error) {
	if cfg.Person == nil || cfg.Record == nil || cfg.Log == nil {
		return nil, errors.New("admin: Person, Record and Log are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg}
	local := func(r *http.Request) (remit.Principal, error) {
		who, _ := r.Context().Value(personKey{}).(remit.Principal)
		//remit:guard S2 TestStrangerOnAdminSocket internal/server
		if who.IsZero() {
			return who, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "your user is not an operator of this server",
				Hint: "operators stand in remit.yaml, by uid"}
		}
		return who, nil
	}
	s.http = &http.Server{
		Handler: s.mux(local, nil), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ConnContext: s.identify, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Remote serves the calls that need nothing of this host to people with a session. Each call is recorded.
func (s *Server) Remote(session func(*http.Request) (remit.Principal, error), quota *gateway.Quota) http.Handler {
	return s.mux(session, quota)
}

// mux serves the table to whom identify names. With a quota, which is for callers from elsewhere, local calls are left out and all
// others are recorded.
func (s *Server) mux(identify func(*http.Request) (remit.Principal, error), quota *gateway.Quota) http.Handler {
	mux := http.NewServeMux()
	for _, op := range s.cfg.Ops {
		//remit:guard S2 TestLocalCallsStayLocal internal/server
		if op.Local && quota != nil {
			continue
		}
		mux.HandleFunc(op.Pattern, func(w http.ResponseWriter, r *http.Request) {
			who, err := identify(r)
			if err != nil {
				gateway.WriteError(w, err) // who is nobody writes nothing (S35)
				return
			}
			account, ok := quota.Enter(who.String(), 0, s.cfg.Now())
			//remit:guard S35 TestPeoplesQuota internal/server
			if !ok {
				gateway.WriteError(w, &remit.Error{Code: remit.CodeExhausted, Msg: "more calls than a person's quota", Hint: "ask again in a second"})
				return
			}
			defer account.Leave()
			s.serve(w, r, op, who)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		gateway.WriteError(w, &remit.Error{Code: remit.CodeNotFound, Msg: "no such call here: " + r.Method + " " + r.URL.Path,
			Hint: "calls that need something of the server's host are served on its admin socket only"})
	})
	return mux
}

// Listen makes the socket: mode 0600, or 0660 with a group (-1: none), before anybody can find it. Its folder may be entered by
// others, who have their own sockets in it; the mode and the peer's uid are the check. A socket that a dead process left is
// replaced; a live one is an error.
func Listen(path string, group int) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make the admin socket's directory: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: "a server answers on " + path + " already", Hint: "stop it first"}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old admin socket: %w", err)
	}
	// It gets its mode under a name that nobody knows: a umask would hold for every file that others of this process make now.
	temp := filepath.Join(filepath.Dir(path), "."+rand.Text()[:8])
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(open(temp, group), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("make the admin socket: %w", err), l.Close(), os.Remove(temp))
	}
	return &listener{UnixListener: l, gone: sync.OnceFunc(func() { _ = os.Remove(path) })}, nil
}

// open lets in who may connect.
func open(path string, group int) error {
	if group < 0 {
		return os.Chmod(path, 0o600)
	}
	return errors.Join(os.Chown(path, -1, group), os.Chmod(path, 0o660)) //nolint:gosec // the group is the operators'
}

// listener removes its socket when it closes.
type listener struct {
	*net.UnixListener
	gone func()
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.gone()
	return l.UnixListener.Close()
}

// Serve answers on l until ctx ends, then lets calls in flight finish for up to 5 s.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.http.Shutdown(sctx)
	})
	defer stop()
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	return nil
}

// identify asks the kernel who connected. The answer is fixed for the connection: it is the process that connected that
// speaks, or one that it handed the connection to.
func (s *Server) identify(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil || cred.Pid == 0 {
		return ctx
	}
	name, roles, ok := s.cfg.Person(cred.Uid)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, personKey{}, remit.Principal{Person: name, Roles: roles, Method: remit.MethodSocket})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, op Op, who remit.Principal) {
	out, err := s.call(w, r, op, who)
	//remit:guard S2 TestRoles internal/server
	if op.Writes || who.Method == remit.MethodSession || remit.CodeOf(err) == remit.CodeForbidden {
		s.record(r, op, who, err)
	}
	if err != nil {
		if remit.CodeOf(err) == remit.CodeInternal {
			s.cfg.Log.Error("management call", "op", op.Name, "err", err)
		}
		gateway.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if raw, ok := out.([]byte); ok {
		_, _ = w.Write(raw)
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) call(w http.ResponseWriter, r *http.Request, op Op, who remit.Principal) (any, error) {
	//remit:guard S2 TestRoles internal/server
	//remit:guard S30 TestRoles internal/server
	if op.Role != "" && !who.HasRole(op.Role) {
		return nil, &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s needs the role %s", op.Name, op.Role),
			Hint: "an admin can give it in remit.yaml"}
	}
	body, err := gateway.ReadBody(w, r, maxBody)
	if err != nil {
		return nil, err
	}
	return op.Do(r.Context(), Call{Who: who, Path: r.PathValue, Query: r.URL.Query(), body: body})
}

type adminData struct {
	Op      string     `json:"op"`
	Path    string     `json:"path"`
	Session string     `json:"session,omitempty"`
	Outcome remit.Code `json:"outcome"` // "ok" or the error's code
}

// record writes the call down. Ends of authority have happened by now (S20), so a record that fails is logged and the
// answer stands; everything else that a call changed was committed together with its own event.
func (s *Server) record(r *http.Request, op Op, who remit.Principal, err error) {
	data := adminData{Op: op.Name, Path: r.URL.Path, Session: who.Credential, Outcome: "ok"}
	if err != nil {
		data.Outcome = remit.CodeOf(err)
	}
	body, _ := json.Marshal(data)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
	defer cancel()
	e := remit.Event{At: s.cfg.Now(), Kind: remit.EventAdmin, By: who.String(), Data: body}
	if err := s.cfg.Record(ctx, e); err != nil {
		s.cfg.Log.Error("management call is not on record", "op", op.Name, "by", who, "err", err)
	}
}
