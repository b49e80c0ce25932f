// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// serve runs kube-apiserver until ctx ends, and says "ready URL" on standard output once it answers.
func serve(ctx context.Context, s settings, keys pki) error {
	quiet(s.verbose)
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)))
	if err != nil {
		return err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	opts := options.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range opts.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(arguments(s, keys)); err != nil {
		return err
	}
	opts.SecureServing.Listener, opts.SecureServing.BindPort = listener, port
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	completed, err := opts.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return errors.Join(errs...)
	}
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx, completed) }()
	url := fmt.Sprintf("https://127.0.0.1:%d", port)
	if err := announce(ctx, s, keys, url, ended); err != nil {
		return err
	}
	if err := <-ended; err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// quiet sends kube-apiserver's log to standard error only when asked for.
func quiet(verbose int) {
	f := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(f)
	if verbose > 0 {
		_ = f.Set("v", strconv.Itoa(verbose))
		return
	}
	_ = f.Set("logtostderr", "false")
	_ = f.Set("stderrthreshold", "FATAL")
	klog.SetOutput(io.Discard)
}

func arguments(s settings, keys pki) []string {
	args := []string{
		"--etcd-servers=" + s.etcd, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/24",
		"--client-ca-file=" + keys.file("ca.crt"), "--tls-cert-file=" + keys.file("server.crt"),
		"--tls-private-key-file=" + keys.file("server.key"), "--cert-dir=" + filepath.Join(s.dir, "certs"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + keys.file("sa.key"), "--service-account-signing-key-file=" + keys.file("sa.key"),
	}
	if s.authorization != "" {
		args = append(args, "--authorization-config="+s.authorization)
	} else {
		args = append(args, "--authorization-mode=RBAC")
	}
	if s.authentication != "" {
		args = append(args, "--authentication-config="+s.authentication)
	}
	if s.auditPolicy != "" {
		args = append(args, "--audit-policy-file="+s.auditPolicy)
	}
	if s.auditWebhook != "" {
		args = append(args, "--audit-webhook-config-file="+s.auditWebhook, "--audit-webhook-batch-max-wait=1s")
	}
	return append(args, s.more...)
}

// announce waits until the server is ready and its built-in namespaces exist, then writes the kubeconfig and says so.
func announce(ctx context.Context, s settings, keys pki, url string, ended chan error) error {
	path := filepath.Join(s.dir, "admin.kubeconfig")
	if err := keys.kubeconfig(path, url); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return err
	}
	client.Timeout = 5 * time.Second
	deadline := time.After(2 * time.Minute)
	for !answers(client, url+"/readyz") || !answers(client, url+"/api/v1/namespaces/kube-system") {
		select {
		case err := <-ended:
			return fmt.Errorf("ended before it was ready: %w", err)
		case <-ctx.Done():
			<-ended
			return nil
		case <-deadline:
			return errors.New("not ready after two minutes")
		case <-time.After(50 * time.Millisecond):
		}
	}
	fmt.Println("ready", url)
	return nil
}

func answers(client *http.Client, url string) bool {
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}
