// SPDX-License-Identifier: Apache-2.0

// Package admin serves the management API on a Unix socket of mode 0600 (S2). Its principals are Persons: the peer's uid, as
// the kernel states it, names an operator of remit.yaml. No agent, tool or run token can hold a role here. Every call is
// decided by role; every refused call and every call that changes something is recorded with its outcome. What the calls
// do stands in a table that the server passes in. The package starts no goroutine but the HTTP server's own.
package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
)

// maxBody bounds a request's body: a statement of 1 MiB in base64 with room.
const maxBody = 4 << 20

// Op is one call.
type Op struct {
	Pattern string // of http.ServeMux: "POST /v1/runs/{id}/advance"
	Name    string // "run.advance", as the ledger names it
	Role    string // a role that the Person needs; empty: any operator, and Do decides the rest
	Writes  bool   // changes something, so it is recorded
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
func (c Call) Decode(v any) error {
	dec := json.NewDecoder(bytes.NewReader(c.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the request's body: " + err.Error()}
	}
	if _, err := dec.Token(); err != io.EOF {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the request's body holds more than one value"}
	}
	return nil
}

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
	mux := http.NewServeMux()
	for _, op := range cfg.Ops {
		mux.HandleFunc(op.Pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, op) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &remit.Error{Code: remit.CodeNotFound, Msg: "no such call: " + r.Method + " " + r.URL.Path})
	})
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ConnContext: s.identify, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Listen makes the socket: mode 0600 before anybody can find it. Its folder may be entered by others, who have their own sockets in
// it; the mode and the peer's uid are the check. A socket that a dead process left
// is replaced; a live one is an error.
func Listen(path string) (net.Listener, error) {
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
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("make the admin socket: %w", err), l.Close(), os.Remove(temp))
	}
	return &listener{UnixListener: l, gone: sync.OnceFunc(func() { _ = os.Remove(path) })}, nil
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

func (s *Server) serve(w http.ResponseWriter, r *http.Request, op Op) {
	who, _ := r.Context().Value(personKey{}).(remit.Principal)
	out, err := s.call(w, r, op, who)
	//remit:guard S2 TestRoles internal/server
	if op.Writes || remit.CodeOf(err) == remit.CodeForbidden {
		s.record(r, op, who, err)
	}
	if err != nil {
		if remit.CodeOf(err) == remit.CodeInternal {
			s.cfg.Log.Error("management call", "op", op.Name, "err", err)
		}
		writeError(w, err)
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
	//remit:guard S2 TestStrangerOnAdminSocket internal/server
	if who.IsZero() {
		return nil, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "your user is not an operator of this server",
			Hint: "operators stand in remit.yaml, by uid"}
	}
	//remit:guard S2 TestRoles internal/server
	//remit:guard S30 TestRoles internal/server
	if op.Role != "" && !who.HasRole(op.Role) {
		return nil, &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s needs the role %s", op.Name, op.Role),
			Hint: "an admin can give it in remit.yaml"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	//remit:guard S35 TestMalformedCalls internal/server
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("the request is larger than %d bytes", maxBody)}
	}
	return op.Do(r.Context(), Call{Who: who, Path: r.PathValue, Query: r.URL.Query(), body: body})
}

type adminData struct {
	Op      string     `json:"op"`
	Path    string     `json:"path"`
	Outcome remit.Code `json:"outcome"` // "ok" or the error's code
}

// record writes the call down. Ends of authority have happened by now (S20), so a record that fails is logged and the
// answer stands; everything else that a call changed was committed together with its own event.
func (s *Server) record(r *http.Request, op Op, who remit.Principal, err error) {
	data := adminData{Op: op.Name, Path: r.URL.Path, Outcome: "ok"}
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

var statusOf = map[remit.Code]int{
	remit.CodeInvalid: 400, remit.CodeUnauthenticated: 401, remit.CodeForbidden: 403, remit.CodeDenied: 403, remit.CodeHeld: 409,
	remit.CodeNotFound: 404, remit.CodeConflict: 409, remit.CodeUnavailable: 503, remit.CodeExhausted: 429, remit.CodeInternal: 500,
}

func writeError(w http.ResponseWriter, err error) {
	var e *remit.Error
	if !errors.As(err, &e) || e.Code == remit.CodeInternal {
		e = &remit.Error{Code: remit.CodeInternal, Msg: "a fault in the server", Hint: "its log says more"}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf[e.Code])
	_ = json.NewEncoder(w).Encode(e)
}
