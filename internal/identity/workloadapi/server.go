// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"remit"
	"remit/internal/identity"
)

// Authority mints SVIDs and publishes the bundle; issuer.Authority implements it. Safe for concurrent use.
type Authority interface {
	identity.Bundles
	TrustDomain() spiffeid.TrustDomain
	Bundle() *spiffebundle.Bundle
	X509SVID(id spiffeid.ID, ttl time.Duration) (*x509svid.SVID, error)
	JWTSVID(id spiffeid.ID, audience []string, ttl time.Duration) (string, identity.JWT, error)
}

// Config is what a Server needs. Everything without a stated default is required.
type Config struct {
	Authority Authority
	Registry  *identity.Registry // its Changed wakes the streams: Notify it when Allowed changes its answer
	// Allowed is asked at every call and push whether the agent may have its identity now: not suspended. From memory.
	Allowed func(remit.Name) bool
	// OnIssue records an SVID before it leaves. On error it does not leave.
	OnIssue func(context.Context, remit.Issued) error
	// OwnAudience is Remit's own: every agent may have JWT-SVIDs for it, each one fresh (S5).
	OwnAudience string
	// JWTTTL is the life of JWT-SVIDs. Default 5 minutes.
	JWTTTL time.Duration
	// Operator says whether a user can manage Remit. Its processes are given no identity, unless AllowOwnUID. Default: nobody.
	Operator func(uid uint32) bool
	// AllowOwnUID: see identity.Attestor. It is weaker; for a laptop under one user.
	AllowOwnUID bool
	// MaxConnections of one user on all sockets, and MaxCalls at once on one connection. Defaults 64 and 32.
	MaxConnections, MaxCalls int
	// Jitter spreads the pushes that a change of keys causes. Default 500 ms; changes of standing are pushed at once.
	Jitter time.Duration
	Log    *slog.Logger     // default: nothing is logged
	Now    func() time.Time // default time.Now
}

// Server serves the Workload API on any number of sockets. It is safe for concurrent use.
type Server struct {
	cfg      Config
	attestor identity.Attestor
	grpc     *grpc.Server
	limits   limits
	x509     cache[*x509Entry]
	jwt      cache[*jwtEntry]
	work     sync.WaitGroup // goroutines that accept on listeners
}

// New checks that every part is there. It serves nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.Authority == nil || cfg.Registry == nil || cfg.Allowed == nil || cfg.OnIssue == nil || cfg.OwnAudience == "" {
		return nil, errors.New("workloadapi: authority, registry, allowed, on-issue and own audience are required")
	}
	if cfg.Operator == nil {
		cfg.Operator = func(uint32) bool { return false }
	}
	if cfg.JWTTTL <= 0 {
		cfg.JWTTTL = 5 * time.Minute
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = 64
	}
	if cfg.MaxCalls <= 0 {
		cfg.MaxCalls = 32
	}
	if cfg.Jitter <= 0 {
		cfg.Jitter = 500 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, limits: limits{perUser: cfg.MaxConnections}}
	s.attestor.AllowOwnUID = cfg.AllowOwnUID
	s.grpc = grpc.NewServer(
		grpc.Creds(&transport{limits: &s.limits}),
		grpc.MaxConcurrentStreams(uint32(cfg.MaxCalls)),
		grpc.MaxRecvMsgSize(64<<10),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Minute}),
		grpc.UnaryInterceptor(checkUnary),
		grpc.StreamInterceptor(checkStream),
	)
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, &service{Server: s})
	reflection.Register(s.grpc)
	return s, nil
}

// Listen serves the shared socket at path, which everybody may connect to: its folder is made with mode 0755, the socket has
// mode 0666. A socket that a dead server left is replaced; one that answers is an error.
func (s *Server) Listen(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // everybody may connect; attestation is the check
		return fmt.Errorf("make folder of the Workload API socket: %w", err)
	}
	l, err := listen(path, 0o666, -1)
	if err != nil {
		return err
	}
	s.serve(l, path, nil)
	return nil
}

// serve accepts on l until it is closed, then removes its socket.
func (s *Server) serve(l *net.UnixListener, path string, b *Bound) {
	s.work.Go(func() {
		err := s.grpc.Serve(&listener{UnixListener: l, bound: b})
		if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			s.cfg.Log.Error("workload API: a socket is not served any more", "socket", path, "err", err)
		}
		if b != nil {
			_ = b.Close()
		} else {
			_ = os.Remove(path)
		}
	})
}

// Close ends all streams and connections, removes the sockets and waits.
func (s *Server) Close() {
	s.grpc.Stop()
	s.work.Wait()
}

// maxSocketPath is what fits into sockaddr_un with its final zero.
const maxSocketPath = 107

// listen makes a socket. It is made under a name that nobody knows and moved into place with mode and owner set.
func listen(path string, mode fs.FileMode, uid int) (*net.UnixListener, error) {
	if !filepath.IsAbs(path) || len(path) > maxSocketPath-len(".new") {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the socket path %q is not absolute, or longer than %d bytes", path, maxSocketPath-len(".new")),
			Hint: "choose a shorter state directory"}
	}
	if err := vacate(path); err != nil {
		return nil, err
	}
	temp := path + ".new"
	_ = os.Remove(temp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if uid >= 0 {
		if err = os.Chown(temp, uid, -1); errors.Is(err, fs.ErrPermission) { // a server that is not root: the process is the check
			mode, err = 0o666, nil
		}
	}
	if err = errors.Join(err, os.Chmod(temp, mode)); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temp)
		return nil, fmt.Errorf("make socket: %w", err)
	}
	return l, nil
}

// vacate allows a socket that nobody answers on to be replaced, and nothing else.
func vacate(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is served by another process", path)
	}
	return nil
}
