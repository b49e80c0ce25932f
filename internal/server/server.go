// SPDX-License-Identifier: Apache-2.0

// Package server is the composition root: it builds every part, connects them, and runs them. All wiring is here and in
// drivers.go; nothing registers itself. Run owns every long-lived goroutine and waits for all of them.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/klog/v2"

	"remit"
	"remit/internal/api"
	"remit/internal/authorizer"
	"remit/internal/broker"
	"remit/internal/config"
	"remit/internal/evidence/registry"
	"remit/internal/gateway"
	"remit/internal/gateway/admin"
	"remit/internal/gateway/egress"
	"remit/internal/gateway/login"
	"remit/internal/gateway/mcp"
	"remit/internal/identity"
	"remit/internal/ledger"
	"remit/internal/run"
	"remit/internal/store"
	"remit/internal/telemetry"
	"remit/internal/tool"
)

// Options of a server.
type Options struct {
	Dir     string // where remit.yaml is
	Log     *slog.Logger
	Version string
	// Passphrase unlocks the key files, where they are wrapped.
	Passphrase remit.Secret
	Now        func() time.Time // default time.Now
	// Elapsed is a clock that nobody sets; default: the time since the host was started, or Now's where that is given.
	Elapsed func() time.Duration
	clock   *clock // both of them
	// Reread is how often live grants that rest on a ticket are judged again; default 10 s.
	Reread time.Duration
	// Executable is this program on disk, of which the parts of sandboxes are made; default: the running one.
	Executable string
	// OnCommit is store.Config.OnCommit: for tests of crashes.
	OnCommit func(n uint64)
}

// Server is everything of one process.
type Server struct {
	dir     string
	cfg     *config.ServerConfig
	td      spiffeid.TrustDomain
	log     *slog.Logger
	version string
	now     func() time.Time
	elapsed func() time.Duration
	reread  time.Duration
	started time.Time

	keeper keeper // of the key files; nil: they are plaintext
	key    *ledger.Key
	store  *store.Store
	ledger *ledger.Log
	images *registry.Registry

	registry *identity.Registry
	auth     *identity.Verifier
	ids      *identities

	rev      atomic.Pointer[revision]
	applying sync.Mutex              // one activation at a time
	former   former                  // targets as earlier revisions had them
	signing  signing                 // who signs the configuration
	refused  atomic.Pointer[refusal] // the last apply, when it was refused

	rechecks rechecks
	starts   starts
	opinions opinions
	findings findings
	starting sync.Map // run id to remit.Run, of those that are not on record yet
	clock    *clock
	halted   atomic.Int64 // the jump that is in force and not on record; 0: none
	before   uint64       // the last entry when this process began

	unrecorded sync.Map // agent name to *suspension, of those that are in force and not on record

	broker     *broker.Broker
	authorizer *authorizer.Authorizer

	management *admin.Server
	access     *run.Access
	values     run.Values     // what calls of live runs returned
	agents     *gateway.Quota // of each, for all that agents ask
	mcp        *mcp.Handler
	webhooks   []*webhook     // that are told of what waits for people
	receivers  []*receiver    // that are told of findings and suspensions
	signaling  sync.WaitGroup // of receivers
	unpolled   chan struct{}  // closed when no poll waits any more
	metrics    metrics
	telemetry  *telemetry.Telemetry // nil: nobody is sent any
	login      *login.Handler       // nil: nobody logs in from elsewhere

	sandboxes  sandboxes
	toolFiles  *tool.Files
	egress     *egress.Proxy
	claims     *tool.Catalogue // the tools that run in sandboxes
	spares     spares
	toolImages toolImages
	parents    parents
	inBoxes    agentBoxes                   // the agents that run in sandboxes
	front      func() (http.Handler, error) // httpsHandler, made once
}

// LibraryLogs sends what client-go writes to its global logger to log. A program calls it before New.
func LibraryLogs(log *slog.Logger) { klog.SetSlogLogger(log) }

func (o *Options) defaults() {
	if o.Elapsed == nil && o.Now != nil {
		start := o.Now()
		o.Elapsed = func() time.Duration { return o.Now().Sub(start) }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Elapsed == nil {
		boot := newBootClock()
		o.Elapsed, o.clock = boot.elapsed, newClock(boot.read, boot.resync)
	}
	if o.clock == nil {
		o.clock = newClock(apartFrom(o.Now, o.Elapsed), nil)
	}
	if o.Reread <= 0 {
		o.Reread = rereadEvery
	}
}

// New opens the state, builds all parts and activates the configuration. On error everything is closed again.
func New(ctx context.Context, o Options) (_ *Server, err error) {
	o.defaults()
	cfg, err := config.LoadServer(filepath.Join(o.Dir, fileServer))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "there is no " + fileServer + " in " + o.Dir, Hint: "make one with remit init"}
	}
	if err != nil {
		return nil, err
	}
	s := &Server{dir: o.Dir, cfg: cfg, td: cfg.TrustDomain, log: o.Log, version: o.Version, now: o.Now, started: o.Now(), elapsed: o.Elapsed, reread: o.Reread,
		registry: identity.NewRegistry()}
	defer func() {
		if err != nil && s.store != nil {
			err = errors.Join(err, s.store.Close())
		}
	}()
	if s.signing, err = newSigning(cfg); err != nil {
		return nil, err
	}
	if s.keeper, err = openKeeper(cfg.Data, o.Passphrase); err != nil {
		return nil, err
	}
	if err := s.openState(o.OnCommit); err != nil {
		return nil, err
	}
	s.clock, s.opinions.queue, s.findings.slots = o.clock, make(chan opinion, opinionQueue), make(chan struct{}, responding)
	if err := errors.Join(s.checkLastEvents(), s.loadStarts()); err != nil {
		return nil, err
	}
	if err := s.openIdentities(ctx); err != nil {
		return nil, err
	}
	s.front = sync.OnceValues(s.httpsHandler)
	if err := errors.Join(s.openTelemetry(ctx), s.buildLine(), s.openTools(o.Executable)); err != nil {
		return nil, err
	}
	if err := errors.Join(s.openPeople(), s.openSignals(), s.openMetrics()); err != nil {
		return nil, err
	}
	if s.management, err = admin.New(admin.Config{Ops: s.ops(), Person: s.person, Record: s.record, Log: s.log, Now: s.now}); err != nil {
		return nil, err
	}
	if err := s.sweepSandboxes(ctx); err != nil {
		return nil, err
	}
	s.before = s.store.LastSeq()
	if err = s.begin(ctx); err != nil {
		return s, err
	}
	return s, s.recordGaps(ctx)
}

func (s *Server) openState(onCommit func(uint64)) (err error) {
	cipher, err := openStateKey(s.path(fileStateKey), s.keeper)
	if err != nil {
		return err
	}
	s.store, err = store.Open(store.Config{Path: s.path(fileState), Cipher: cipher, Now: s.now, OnCommit: onCommit,
		Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
			return s.key.SignBatch(first, size, root)
		}})
	if err != nil {
		return err
	}
	if s.key, err = loadLedgerKey(s.cfg.Data, s.keeper); err != nil { // under the store's lock: no rotation is under way
		return err
	}
	if s.ledger, err = ledger.OpenLog(s.path(dirLedger), s.key.Public()); err != nil {
		return err
	}
	r := s.cfg.Registry
	s.images, err = registry.New(registry.Config{Timeout: r.Timeout, Insecure: r.Insecure, Keychain: r.Keychain})
	return err
}

func (s *Server) buildLine() (err error) {
	s.broker, err = broker.New(broker.Config{Store: leases{s.store}, Targets: s.target, Names: s.targetNames, AgentID: s.agentID,
		Log: s.log, Now: s.now, Elapsed: s.elapsed})
	if err != nil {
		return err
	}
	cfg := authorizer.Config{Policy: func() authorizer.Policy { return s.rev.Load().plan }, State: s.store,
		Evidence: collector{s}, Record: s.store, Broker: s.broker, Acts: s.store,
		Fold: &authorizer.Fold{Window: s.cfg.Quotas.Fold}, Pace: paceOf(s.cfg.Findings.Throttle)}
	s.traced(&cfg)
	if s.authorizer, err = authorizer.New(cfg); err != nil {
		return err
	}
	s.agents = gateway.NewQuota(limitsOf(s.cfg.Quotas.Agents))
	if s.access, err = run.NewAccess(); err != nil {
		return err
	}
	s.mcp, err = s.newMCP(s.agents)
	return err
}

// collector asks the active revision's sources.
type collector struct{ s *Server }

// Collect implements authorizer.Evidence.
func (c collector) Collect(ctx context.Context, needs []remit.Need, req *remit.Request) []remit.Found {
	return c.s.rev.Load().collector.Collect(ctx, needs, req)
}

// Fresh implements authorizer.Evidence.
func (c collector) Fresh(ctx context.Context, found []remit.Found) ([]remit.Found, bool) {
	return c.s.rev.Load().collector.Fresh(ctx, found)
}

// leases adapts the store to the broker.
type leases struct{ *store.Store }

func (s *Server) targetNames() []string {
	var out []string
	for name := range s.rev.Load().targets {
		out = append(out, name)
	}
	return out
}

func (s *Server) agentID(n remit.Name) string {
	a, _ := s.registry.Named(n)
	return a.ID.String()
}

func (s *Server) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Data}, elem...)...)
}

// Run serves until ctx ends, then stops in order: listeners first, the sequencer last, so that what was acknowledged is in the
// log. ready is called once everything answers.
func (s *Server) Run(ctx context.Context, ready func(api.Status)) (err error) {
	defer func() { err = errors.Join(err, s.store.Close()) }()
	https, err := net.Listen("tcp", s.cfg.HTTPS)
	if err != nil {
		return &remit.Error{Code: remit.CodeUnavailable, Msg: "cannot listen on " + s.cfg.HTTPS, Cause: err, Hint: "set listen: https in remit.yaml"}
	}
	sock, err := admin.Listen(s.cfg.Admin, s.cfg.AdminGroup)
	if err != nil {
		return errors.Join(err, https.Close())
	}
	cosign, err := s.cosigners()
	if err != nil {
		return errors.Join(err, https.Close(), sock.Close())
	}
	sequencer, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: s.path(dirLedger), Source: s.store, Key: s.key, Cosign: cosign, Log: s.log})
	if err != nil {
		return errors.Join(err, https.Close(), sock.Close())
	}
	if err := s.ids.api.Listen(s.cfg.Workload); err != nil { // before ready: clients of the Workload API back off by seconds
		return errors.Join(err, https.Close(), sock.Close())
	}
	front, back := newGroup(ctx), newGroup(context.WithoutCancel(ctx))
	back.run("sequencer", sequencer.Run)
	front.run("https", func(ctx context.Context) error { return s.serveHTTPS(ctx, https) })
	front.run("admin socket", func(ctx context.Context) error { return s.management.Serve(ctx, sock) })
	front.run("broker", s.broker.Run)
	front.run("janitor", s.janitor)
	front.run("logs", s.readLogs)
	front.run("recheck", s.recheckAsked)
	front.run("tickets", s.rereadTickets)
	front.run("second opinion", s.judgeSampled)
	front.run("findings", s.followLedger)
	front.run("hangup", s.onHangup)
	front.run("announcements", s.announce)
	front.run("signals", s.signal)
	front.run("metrics", s.countEntries)
	front.run("telemetry", s.sendTelemetry)
	s.runIdentities(front)
	if ready != nil {
		ready(s.status())
	}
	select {
	case <-front.ctx.Done():
	case <-back.ctx.Done(): // the ledger cannot go on: nor can we
	}
	s.endBoxed(back.ctx, "the server stopped", func(*boxed) bool { return true })
	err = errors.Join(front.stop(), s.closeTools())
	s.recordFolded(back.ctx, true)
	s.drain(back.ctx)
	return errors.Join(err, back.stop())
}

// drain waits until everything that was acknowledged is in the log, for 10 s at most; after that the log is completed at the
// next start.
func (s *Server) drain(ctx context.Context) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if cp, err := s.ledger.Checkpoint(); err == nil && cp.Size >= s.store.LastSeq() {
			return
		}
	}
	s.log.Warn("stopped before everything was in the log; the next start completes it", "events", s.store.LastSeq())
}

// janitor ends runs whose time is over and launches whose process is gone, and repeats records that failed.
func (s *Server) janitor(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.watchClock()
			s.recordHalt(ctx)
			s.expireRuns(ctx)
			s.endDeadLaunches(ctx)
			s.recordSuspensions(ctx)
			s.endUnanswered(ctx)
			s.recordFolded(ctx, false)
		}
	}
}

// recordFolded writes down how many repeated denials were answered with recorded ones.
func (s *Server) recordFolded(ctx context.Context, all bool) {
	if err := s.authorizer.Flush(ctx, s.now(), all); err != nil && ctx.Err() == nil {
		s.log.Error("a count of repeated denials is not on record; the denials are", "err", err)
	}
}

// onHangup applies the configuration on SIGHUP, as remit apply does.
func (s *Server) onHangup(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			if a, err := s.activate(ctx, "SIGHUP", false); err != nil {
				s.log.Error("the configuration is not applied; the active revision stays", "err", err)
			} else {
				s.log.Info("configuration applied", "revision", a.Revision, "changed", a.Changed)
			}
		}
	}
}

func (s *Server) person(uid uint32) (remit.Name, []string, bool) {
	for _, o := range s.cfg.Operators {
		if o.UID == uid {
			return o.Name, o.Roles, true
		}
	}
	return "", nil, false
}

func (s *Server) record(ctx context.Context, e remit.Event) error {
	_, err := s.store.Commit(ctx, remit.Change{Events: []remit.Event{e}})
	return err
}

func (s *Server) status() api.Status {
	st := api.Status{Version: s.version, TrustDomain: s.td.Name(), Started: s.started, HTTPS: s.baseURL(), Workload: s.cfg.Workload,
		LedgerSize: s.store.LastSeq(), Revision: s.rev.Load().set.Digest}
	if cp, err := s.ledger.Checkpoint(); err == nil {
		st.Sequenced = cp.Size
	}
	return st
}

// group runs goroutines together: the first that fails ends all.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	mu     sync.Mutex // guards errs
	errs   []error
}

func newGroup(ctx context.Context) *group {
	g := &group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

func (g *group) run(name string, f func(context.Context) error) {
	g.wg.Go(func() {
		err := f(g.ctx)
		if err == nil && g.ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		g.mu.Lock()
		g.errs = append(g.errs, fmt.Errorf("%s: %w", name, err))
		g.mu.Unlock()
		g.cancel(err)
	})
}

// stop ends all and returns what failed; that the context ended is no failure.
func (g *group) stop() error {
	g.cancel(nil)
	g.wg.Wait()
	return errors.Join(g.errs...)
}
