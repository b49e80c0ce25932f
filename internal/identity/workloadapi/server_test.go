// SPDX-License-Identifier: Apache-2.0

package workloadapi_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"remit"
	"remit/internal/identity/issuer"
	"remit/internal/identity/workloadapi"
)

// nil2 changes only the server's configuration.
func nil2(change func(*workloadapi.Config)) func(*issuer.Config, *workloadapi.Config) {
	return func(_ *issuer.Config, c *workloadapi.Config) { change(c) }
}

func (f *fixture) raw() workload.SpiffeWorkloadAPIClient {
	f.t.Helper()
	return workload.NewSpiffeWorkloadAPIClient(f.conn())
}

func (f *fixture) conn() *grpc.ClientConn {
	f.t.Helper()
	conn, err := grpc.NewClient("unix://"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func header(values ...string) context.Context {
	ctx := context.Background()
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", v)
	}
	return ctx
}

func TestCodes(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	api := f.raw()
	stream := func(ctx context.Context) error {
		s, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	jwt := func(id string, aud ...string) error {
		_, err := api.FetchJWTSVID(header("true"), &workload.JWTSVIDRequest{SpiffeId: id, Audience: aud})
		return err
	}
	validate := func(token, aud string) error {
		_, err := api.ValidateJWTSVID(header("true"), &workload.ValidateJWTSVIDRequest{Svid: token, Audience: aud})
		return err
	}
	res, err := api.FetchJWTSVID(header("true"), &workload.JWTSVIDRequest{Audience: []string{own}})
	if err != nil {
		t.Fatal(err)
	}
	good := res.Svids[0].Svid
	wit := func() error {
		s, err := api.FetchWITSVID(header("true"), &workload.WITSVIDRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	for name, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"stream":              {stream(header("true")), codes.OK},
		"no header":           {stream(context.Background()), codes.InvalidArgument},
		"header TRUE":         {stream(header("TRUE")), codes.InvalidArgument},
		"header twice":        {stream(header("true", "true")), codes.InvalidArgument},
		"unary, no header":    {second(api.FetchJWTSVID(context.Background(), &workload.JWTSVIDRequest{Audience: []string{own}})), codes.InvalidArgument},
		"own audience":        {jwt("", own), codes.OK},
		"listed audience":     {jwt("", "https://vault"), codes.OK},
		"both":                {jwt("", "https://vault", own), codes.OK},
		"unlisted audience":   {jwt("", "https://kubernetes.default.svc"), codes.PermissionDenied},
		"one unlisted":        {jwt("", "https://vault", "https://kubernetes.default.svc"), codes.PermissionDenied},
		"prefix of a listed":  {jwt("", "https://vaul"), codes.PermissionDenied},
		"no audience":         {jwt(""), codes.InvalidArgument},
		"empty audience":      {jwt("", ""), codes.InvalidArgument},
		"many audiences":      {jwt("", strings.Split("123456789", "")...), codes.InvalidArgument},
		"own id":              {jwt("spiffe://company.com/agent/deploy", own), codes.OK},
		"foreign subject":     {jwt("spiffe://company.com/agent/other", own), codes.PermissionDenied},
		"longer id":           {jwt("spiffe://company.com/agent/deploy-evil", own), codes.PermissionDenied},
		"below the id":        {jwt("spiffe://company.com/agent/deploy/x", own), codes.PermissionDenied},
		"malformed id":        {jwt("spiffe://Company.com/agent/deploy", own), codes.InvalidArgument},
		"validate":            {validate(good, own), codes.OK},
		"validate, other aud": {validate(good, "https://vault"), codes.InvalidArgument},
		"validate, no aud":    {validate(good, ""), codes.InvalidArgument},
		"validate, garbage":   {validate("x.y.z", own), codes.InvalidArgument},
		"validate, empty":     {validate("", own), codes.InvalidArgument},
		"WIT":                 {wit(), codes.Unimplemented},
	} {
		if got := status.Code(c.err); got != c.want {
			t.Errorf("%s: %s, want %s (%v)", name, got, c.want, c.err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestNoIdentity(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", "unix:uid:4999"))
	c := f.client()
	ctx := context.Background()
	for name, err := range map[string]error{
		"X.509-SVID":    second(c.FetchX509SVID(ctx)),
		"X.509 bundles": second(c.FetchX509Bundles(ctx)),
		"JWT-SVID":      second(c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: own})),
		"JWT bundles":   second(c.FetchJWTBundles(ctx)),
	} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryCallOfTheRealClient(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()), agent("second", self()))
	c, ctx := f.client(), context.Background()
	svids, err := c.FetchX509SVIDs(ctx)
	if err != nil || len(svids) != 2 || svids[0].Hint != "agent/deploy" || svids[1].Hint != "agent/second" {
		t.Fatalf("%v, %v", svids, err)
	}
	x509, err := c.FetchX509Bundles(ctx)
	if err != nil || x509.Len() != 1 || len(x509.Bundles()[0].X509Authorities()) != 1 {
		t.Errorf("X.509 bundles: %v, %v", x509, err)
	}
	jwts, err := c.FetchJWTBundles(ctx)
	if err != nil || jwts.Len() != 1 {
		t.Fatalf("JWT bundles: %v, %v", jwts, err)
	}
	token, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: own, Subject: spiffeid.RequireFromPath(domain, "/agent/second")})
	if err != nil || token.ID.Path() != "/agent/second" {
		t.Fatalf("JWT-SVID: %v, %v", token, err)
	}
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), jwts, []string{own}); err != nil {
		t.Errorf("with the fetched bundle: %v", err)
	}
	if v, err := c.ValidateJWTSVID(ctx, token.Marshal(), own); err != nil || v.ID != token.ID {
		t.Errorf("validate: %v, %v", v, err)
	}
	src, err := client.NewBundleSource(ctx, client.WithClientOptions(f.addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if b, err := src.GetBundleForTrustDomain(domain); err != nil || len(b.X509Authorities()) != 1 || len(b.JWTAuthorities()) != 1 {
		t.Errorf("bundle source: %v, %v", b, err)
	}
	jwtSource, err := client.NewJWTSource(ctx, client.WithClientOptions(f.addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer jwtSource.Close()
	if _, err := jwtSource.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "https://vault"}); err != nil {
		t.Errorf("JWT source: %v", err)
	}
	refl, err := reflectionpb.NewServerReflectionClient(f.conn()).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = refl.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	if got, err := refl.Recv(); err != nil || !strings.Contains(got.String(), "SpiffeWorkloadAPI") {
		t.Errorf("reflection: %v, %v", got, err)
	}
}

// TestJWTCache: tokens for Remit are fresh each time (S5), others are shared.
func TestJWTCache(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	c, ctx := f.client(), context.Background()
	get := func(p jwtsvid.Params) string {
		s, err := c.FetchJWTSVID(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		return s.Marshal()
	}
	if one, two := get(jwtsvid.Params{Audience: own}), get(jwtsvid.Params{Audience: own}); one == two {
		t.Error("a token for Remit was shown twice")
	}
	both := jwtsvid.Params{Audience: "https://vault", ExtraAudiences: []string{own}}
	if one, two := get(both), get(both); one == two {
		t.Error("a token that is also for Remit was shown twice")
	}
	first := get(jwtsvid.Params{Audience: "https://vault"})
	if first != get(jwtsvid.Params{Audience: "https://vault"}) {
		t.Error("a token for another is not shared")
	}
	if err := errors.Join(f.authority.Prepare(), f.authority.Activate(), f.authority.Drop()); err != nil {
		t.Fatal(err)
	}
	if first == get(jwtsvid.Params{Audience: "https://vault"}) {
		t.Error("a token of a dropped key was shown again")
	}
}

func TestOneSVIDPerIdentity(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	a, b := fetchVia(t, f.client()), fetchVia(t, f.client())
	if a != b {
		t.Error("two connections of one workload got two SVIDs")
	}
}

func fetchVia(t *testing.T, c *client.Client) string {
	t.Helper()
	s, err := c.FetchX509SVID(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s.Certificates[0].SerialNumber.String()
}

// TestNothingUnrecorded: what cannot be recorded does not leave (S8).
func TestNothingUnrecorded(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	f.refuseToRecord(errors.New("disk full"))
	c, ctx := f.client(), context.Background()
	for name, err := range map[string]error{"X.509": second(c.FetchX509SVID(ctx)), "JWT": second(c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: own})),
		"shared JWT": second(c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "https://vault"}))} {
		if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "disk full") {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.refuseToRecord(nil)
	if _, err := c.FetchX509SVID(ctx); err != nil {
		t.Error(err)
	}
}

// watcher collects what a watch delivers.
type watcher struct {
	updates chan *client.X509Context
	errs    chan error
}

func (w *watcher) OnX509ContextUpdate(c *client.X509Context) { w.updates <- c }
func (w *watcher) OnX509ContextWatchError(err error)         { w.errs <- err }

func (f *fixture) watch() *watcher {
	w := &watcher{updates: make(chan *client.X509Context, 64), errs: make(chan error, 64)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.client().WatchX509Context(ctx, w)
	}()
	f.t.Cleanup(func() { cancel(); <-done })
	return w
}

func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestSuspensionEndsStreams(t *testing.T) {
	var took []time.Duration
	for range 20 {
		f := newFixture(t, nil, agent("deploy", self()))
		w := f.watch()
		next(t, w.updates)
		began := time.Now()
		f.suspend("agent/deploy")
		if err := next(t, w.errs); status.Code(err) != codes.PermissionDenied {
			t.Fatalf("the stream ended with %v", err)
		}
		took = append(took, time.Since(began))
		if _, err := f.client().FetchX509SVID(context.Background()); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a suspended agent: %v", err)
		}
		if _, err := f.client().FetchJWTSVID(context.Background(), jwtsvid.Params{Audience: own}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a suspended agent: %v", err)
		}
	}
	slices.Sort(took)
	t.Logf("from suspension to PermissionDenied at the client: median %s, worst %s", took[10], took[19])
	if took[10] > 100*time.Millisecond {
		t.Errorf("median %s", took[10])
	}
}

func TestConfigurationChangesAreFollowed(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	w := f.watch()
	next(t, w.updates)
	f.configure(agent("deploy", self()), agent("second", self()))
	if got := next(t, w.updates); len(got.SVIDs) != 2 {
		t.Errorf("%d SVIDs after another agent was added", len(got.SVIDs))
	}
	f.configure(agent("second", self()))
	if got := next(t, w.updates); len(got.SVIDs) != 1 || got.DefaultSVID().Hint != "agent/second" {
		t.Errorf("after the first was removed: %+v", got.SVIDs)
	}
	before := len(w.updates)
	f.configure(agent("second", self()), agent("elsewhere", "unix:uid:4999"))
	time.Sleep(50 * time.Millisecond)
	if len(w.updates) != before {
		t.Error("a change that does not concern the caller was pushed")
	}
	f.configure()
	if err := next(t, w.errs); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after all were removed: %v", err)
	}
}

func TestForcedRootRotationIsPushed(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	w := f.watch()
	serial := next(t, w.updates).DefaultSVID().Certificates[0].SerialNumber
	if err := f.authority.Prepare(); err != nil {
		t.Fatal(err)
	}
	got := next(t, w.updates)
	if got.DefaultSVID().Certificates[0].SerialNumber.Cmp(serial) != 0 {
		t.Error("a new root alone made a new SVID")
	}
	if b, _ := got.Bundles.Get(domain); len(b.X509Authorities()) != 2 {
		t.Error("the next root was not pushed")
	}
	if err := errors.Join(f.authority.Activate(), f.authority.Drop()); err != nil {
		t.Fatal(err)
	}
	for {
		got = next(t, w.updates)
		if b, _ := got.Bundles.Get(domain); len(b.X509Authorities()) == 1 {
			break
		}
	}
	if got.DefaultSVID().Certificates[0].SerialNumber.Cmp(serial) == 0 {
		t.Error("an SVID of a dropped root was pushed")
	}
}

func TestConnectionsPerUser(t *testing.T) {
	f := newFixture(t, nil2(func(c *workloadapi.Config) { c.MaxConnections = 4 }), agent("deploy", self(), "unix:uid:4001"))
	var open []net.Conn
	for range 4 {
		c, err := net.Dial("unix", f.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, 9)); err != nil { // the server's HTTP/2 settings: it was admitted
			t.Fatal(err)
		}
		open = append(open, c)
	}
	over, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	_ = over.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := over.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection over the limit: %v", err)
	}
	if os.Geteuid() == 0 {
		if got := f.ask(4001, "fetch", f.socket); got.Code != "" {
			t.Errorf("another user was locked out: %+v", got)
		}
	}
	_ = open[0].Close()
	for range 100 {
		if _, err = f.client().FetchX509SVID(context.Background()); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("after one has closed: %v", err)
}

func TestSocketFile(t *testing.T) {
	f := newFixture(t, nil, agent("deploy", self()))
	info, err := os.Stat(f.socket)
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := f.server.Listen(f.socket); err == nil {
		t.Error("a socket that is served was replaced")
	}
	plain := f.dir + "/plain"
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.server.Listen(plain); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if err := f.server.Listen("/" + strings.Repeat("x", 120)); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("a long path: %v", err)
	}
	f.server.Close()
	if _, err := os.Stat(f.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestRotationUnderLoad dials mTLS all the time while SVIDs of four seconds rotate and the root is replaced: no handshake fails.
func TestRotationUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	a := agent("deploy", self())
	a.TTL = 4 * time.Second
	f := newFixture(t, nil, a)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	source := func() *client.X509Source {
		s, err := client.NewX509Source(ctx, client.WithClientOptions(f.addr()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	id := spiffeid.RequireFromPath(domain, "/agent/deploy")
	server, dialer := source(), source()
	l, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(id), server))
	if err != nil {
		t.Fatal(err)
	}
	var echo sync.WaitGroup
	echo.Go(func() { serveEcho(l, &echo) })
	serials := map[string]bool{}
	dials, failed := 0, 0
	deadline := time.Now().Add(9 * time.Second)
	steps := []struct {
		at   time.Duration
		do   func() error
		name string
	}{{2 * time.Second, f.authority.Prepare, "prepare"}, {4 * time.Second, f.authority.Activate, "activate"}, {7 * time.Second, f.authority.Drop, "drop"}}
	for began := time.Now(); time.Now().Before(deadline); dials++ {
		if len(steps) > 0 && time.Since(began) > steps[0].at {
			if err := steps[0].do(); err != nil {
				t.Fatalf("%s: %v", steps[0].name, err)
			}
			steps = steps[1:]
		}
		serial, err := dialOnce(ctx, l.Addr().String(), id, dialer)
		if err != nil {
			failed++
			t.Logf("dial %d: %v", dials, err)
		}
		serials[serial] = true
	}
	_ = l.Close()
	echo.Wait()
	t.Logf("%d handshakes, %d failed, %d certificates", dials, failed, len(serials))
	if failed > 0 || len(serials) < 4 || len(serials) > 8 || len(steps) > 0 {
		t.Errorf("%d of %d handshakes failed; %d certificates; %d steps left", failed, dials, len(serials), len(steps))
	}
}

func serveEcho(l net.Listener, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.Copy(c, c)
		})
	}
}

func dialOnce(ctx context.Context, addr string, id spiffeid.ID, src *client.X509Source) (string, error) {
	c, err := spiffetls.DialWithMode(ctx, "tcp", addr, spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(id), src))
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return "", fmt.Errorf("write: %w", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	tc, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return "", errors.New("no connection state")
	}
	return tc.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func BenchmarkSignedJWTSVID(b *testing.B) {
	f := newFixture(b, nil, agent("deploy", self()))
	api, ctx := f.raw(), header("true")
	req := &workload.JWTSVIDRequest{Audience: []string{own}}
	b.ResetTimer()
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := api.FetchJWTSVID(ctx, req); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
