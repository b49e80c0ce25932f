// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"remit"
	"remit/internal/evidence/evidencetest"
	"remit/internal/gateway/login/logintest"
	"remit/internal/testpostgres"
)

// Users of the laboratory. Nobody on the host needs to have them.
const (
	deployUID = 4001 + iota
	otherUID
	idleUID
	workerUID
	gateUID
	readerUID   = 4100 // an operator who is only auditor
	strangerUID = 4200 // a user without any part in it
)

// lab is an installation of one's own: the shipped binary, with everything in it that an attack may need.
type lab struct {
	dir     string
	profile *Profile
	process *exec.Cmd
	exited  chan error
	log     *os.File
	signers map[string]*evidencetest.Signer
	desk    *desk
	issuer  *evidencetest.Issuer // of the CI system
	cluster *cluster
	image   string // with digest
	id      string // the installation's at the cluster

	clock     *processClock // of the server, once it was touched
	registry  *httptest.Server
	payments  *httptest.Server // what tools in sandboxes post to
	boxes     []string         // what boxFiles names, and what it is
	index     string           // an image for two platforms, with digest
	platforms [2]string        // their digests

	database *testpostgres.Server // nil: PostgreSQL is not installed

	provider     *logintest.Provider // nil: node or its packages are not there
	stopProvider func()
}

func newLab(ctx context.Context, binary string, withCluster bool) (*lab, error) {
	l := &lab{signers: map[string]*evidencetest.Signer{}}
	if os.Getuid() != 0 {
		return l, errors.New("the laboratory gives each agent a user of its own, which needs root; as another user attack an installation with -profile")
	}
	var err error
	if l.dir, err = os.MkdirTemp("", "ra-"); err != nil { // short: sockets live in it
		return l, err
	}
	steps := []func(context.Context, string) error{l.copyBinary, l.initialise, l.makeSigners, l.makeBoxes, l.startDesk, l.startIssuer, l.startProvider, l.pushIndex, l.startDatabase}
	if withCluster {
		steps = append(steps, l.startCluster)
	}
	for _, step := range append(steps, l.writeFiles, l.serve, l.settle, l.prepareDatabase) {
		if err := step(ctx, binary); err != nil {
			return l, fmt.Errorf("set up the laboratory: %w", err)
		}
	}
	return l, nil
}

func (l *lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

func (l *lab) copyBinary(_ context.Context, binary string) error {
	b, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("%w: make build makes it", err)
	}
	l.id, l.image = "lab", "registry.company.com/foo@"+string(remit.DigestOf([]byte("the image of the laboratory")))
	return errors.Join(os.Chmod(l.dir, 0o755), os.WriteFile(l.path("remit"), b, 0o755))
}

func (l *lab) initialise(ctx context.Context, _ string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	if out, err := l.run(ctx, "init", "--trust-domain", "company.com", "--operator", "ci", "--https", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	at := func(elem ...string) string { return l.path(append([]string{"state"}, elem...)...) }
	uid := func(n int) *int { return &n }
	l.profile = &Profile{Server: fmt.Sprintf("https://localhost:%d", port), Bundle: at("bundle.pem"), TrustDomain: "company.com", Remit: l.path("remit"),
		Workload: at("run", "workload.sock"), Admin: at("run", "admin.sock"), Dir: at(), Log: l.path("serve.log"),
		Identities: map[string]Identity{"agent": {"agent/deploy", uid(deployUID)}, "other": {"agent/other", uid(otherUID)},
			"idle": {"agent/idle", uid(idleUID)}, "gate": {"pep/gate", uid(gateUID)}},
		Run: Run{"work", map[string]string{"app": "foo"}},
		Act: Act{"kubernetes.apply", "desk-target", map[string]string{"namespace": "production", "kind": "Deployment", "name": "foo"}}, lab: l}
	return nil
}

// freePort finds one below those that the kernel gives to outgoing connections, so that it is still free after a restart.
func freePort() (int, error) {
	for i := range 2000 {
		port := 14000 + (os.Getpid()*41+i)%16000
		if conn, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, conn.Close()
		}
	}
	return 0, errors.New("no free port")
}

func (l *lab) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return exec.CommandContext(ctx, l.path("remit"), append([]string{"--dir", l.path("state")}, args...)...).CombinedOutput()
}

// pushIndex pushes an image for two platforms to a registry of the laboratory.
func (l *lab) pushIndex(context.Context, string) error {
	l.registry = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	index, err := random.Index(256, 1, 2)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for i := range l.platforms {
		l.platforms[i] = manifest.Manifests[i].Digest.String()
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	repository := strings.TrimPrefix(l.registry.URL, "http://") + "/company/foo"
	ref, err := name.ParseReference(repository+":v1", name.Insecure)
	if err != nil {
		return err
	}
	l.index = repository + "@" + digest.String()
	return remote.WriteIndex(ref, index)
}

func (l *lab) makeSigners(context.Context, string) error {
	for _, name := range []string{"scanner", "builds", "agents", "stranger"} {
		s, err := evidencetest.NewSigner("ci-" + name)
		if err != nil {
			return err
		}
		l.signers[name] = s
		if err := os.WriteFile(l.path(name+".pub"), []byte(s.PublicPEM()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// serve starts the server and waits until it is ready.
func (l *lab) serve(ctx context.Context, _ string) error {
	var err error
	if l.log, err = os.OpenFile(l.profile.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	l.process = exec.Command(l.path("remit"), "--dir", l.path("state"), "serve", "--log-level", "debug")
	l.process.Stderr = l.log
	out, err := l.process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := l.process.Start(); err != nil {
		return err
	}
	ready, exited := make(chan struct{}), make(chan error, 1)
	l.exited = exited
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "ready") {
				close(ready)
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
		exited <- l.process.Wait()
	}()
	select {
	case <-ready:
		return nil
	case err := <-exited:
		exited <- err
		text, _ := os.ReadFile(l.profile.Log)
		return fmt.Errorf("remit serve ended: %w\n%s", err, text)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Minute):
		return errors.New("remit serve is not ready after a minute")
	}
}

// settle waits until doctor finds nothing wrong with the cluster: admission policies may be seconds old.
func (l *lab) settle(ctx context.Context, _ string) error {
	if l.cluster == nil {
		return nil
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(250 * time.Millisecond) {
		target, out, err := l.doctor(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("remit doctor %s: %w\n%s", target, err, out)
		}
	}
}

// doctor asks about each target, up to the first with which something is wrong.
func (l *lab) doctor(ctx context.Context) (target string, out []byte, err error) {
	for _, target = range []string{inServiceAccount, inJWT, inWebhook} {
		if out, err = l.run(ctx, "doctor", target); err != nil {
			break
		}
	}
	return target, out, err
}

func (l *lab) stop(sig syscall.Signal) {
	if l.process == nil || l.process.Process == nil {
		return
	}
	_ = l.process.Process.Signal(sig)
	select {
	case err := <-l.exited:
		l.exited <- err
	case <-time.After(20 * time.Second):
		_ = l.process.Process.Kill()
		l.exited <- <-l.exited
	}
	_ = l.log.Close()
}

func (l *lab) close() {
	l.stop(syscall.SIGTERM)
	if l.desk != nil {
		l.desk.close()
	}
	if l.issuer != nil {
		l.issuer.Close()
	}
	if l.provider != nil {
		l.stopProvider()
	}
	if l.registry != nil {
		l.registry.Close()
	}
	if l.payments != nil {
		l.payments.Close()
	}
	if l.database != nil {
		_ = l.database.Stop()
	}
	if l.cluster != nil {
		l.cluster.close()
	}
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// env is what scripts that need the laboratory may name.
func (l *lab) env() map[string]string {
	e := map[string]string{"IMAGE": l.image, "DIGEST": l.image[strings.Index(l.image, "@")+1:], "WORKER_UID": fmt.Sprint(workerUID),
		"READER": fmt.Sprint(readerUID), "STRANGER": fmt.Sprint(strangerUID), "CONFIG": l.path("state", "config"),
		"OTHER_DIGEST": string(remit.DigestOf([]byte("another image"))), "GATE": "spiffe://company.com/pep/gate",
		"INDEX": l.index, "PLATFORM1": l.platforms[0], "PLATFORM2": l.platforms[1]}
	if l.database != nil {
		e["DB_PASSWORD"] = dbPassword
	}
	if l.cluster != nil {
		e["BROKER"] = l.cluster.broker
	}
	return e
}
