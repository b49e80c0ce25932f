// SPDX-License-Identifier: Apache-2.0

// Command apiserver runs a real kube-apiserver with its etcd in one process, on 127.0.0.1 only, for tests and the demo. It
// makes its own certificates below --dir, writes DIR/admin.kubeconfig, and prints one line, "ready URL", when requests are
// served. It runs no controller, scheduler or kubelet: nothing creates default service accounts or collects garbage.
// It ends on SIGTERM, SIGINT, or, with --stdin, when its standard input closes.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// settings are the command line. Everything after "--" goes to kube-apiserver as it is.
type settings struct {
	dir            string
	pki            string // directory of CA and signing key; shared by two servers on one etcd
	port           int
	etcd           string // empty: start one
	authentication string
	authorization  string
	auditPolicy    string
	auditWebhook   string
	stdin          bool
	verbose        int
	more           []string
}

func main() {
	s, err := parse(os.Args[1:])
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
		err = run(ctx, s)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "apiserver:", err)
		os.Exit(1)
	}
}

func parse(args []string) (settings, error) {
	var s settings
	f := flag.NewFlagSet("apiserver", flag.ContinueOnError)
	f.StringVar(&s.dir, "dir", "", "directory for certificates, kubeconfig and etcd (required)")
	f.StringVar(&s.pki, "pki", "", "directory of certificates to share with another server (default DIR/pki)")
	f.IntVar(&s.port, "port", 0, "port on 127.0.0.1; 0 picks a free one")
	f.StringVar(&s.etcd, "etcd", "", "URL of a running etcd, as another server wrote it to DIR/etcd.url; empty starts one")
	f.StringVar(&s.authentication, "authentication-config", "", "AuthenticationConfiguration file")
	f.StringVar(&s.authorization, "authorization-config", "", "AuthorizationConfiguration file; empty means RBAC")
	f.StringVar(&s.auditPolicy, "audit-policy", "", "audit policy file")
	f.StringVar(&s.auditWebhook, "audit-webhook-config", "", "kubeconfig of the audit webhook")
	f.BoolVar(&s.stdin, "stdin", false, "end when standard input closes")
	f.IntVar(&s.verbose, "v", 0, "verbosity of kube-apiserver's log; 0 shows errors only")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if s.dir == "" {
		return s, fmt.Errorf("--dir is missing")
	}
	if s.pki == "" {
		s.pki = filepath.Join(s.dir, "pki")
	}
	s.more = f.Args()
	return s, nil
}

func run(ctx context.Context, s settings) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.stdin {
		go func() { // ends with the process: a blocked read of standard input cannot be called back
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	keys, err := openPKI(s.pki)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	stopEtcd := func() {}
	if s.etcd == "" {
		if s.etcd, stopEtcd, err = startEtcd(ctx, filepath.Join(s.dir, "etcd")); err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
	}
	defer stopEtcd()
	if err := os.WriteFile(filepath.Join(s.dir, "etcd.url"), []byte(s.etcd), 0o600); err != nil {
		return err
	}
	return serve(ctx, s, keys)
}
