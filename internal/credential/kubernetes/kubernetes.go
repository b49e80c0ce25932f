// SPDX-License-Identifier: Apache-2.0

// Package kubernetes mints credentials at a Kubernetes cluster that can touch one object of one kind in one namespace, with
// the approved images, and end within milliseconds.
//
// What a lease may do stands in one Role, bound by one RoleBinding; ending it is deleting the binding. Names of new objects,
// images and contents are held by admission policies (folder manifest) that ask the cluster's own authorizer about virtual
// resources in that Role. The package never reads a Secret, never escalates, never proxies a request, and mints nothing
// while a policy is absent or changed. It starts goroutines only inside a call and waits for them. doc.md is for operators.
package kubernetes

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"remit"
	"remit/internal/credential"
)

// Mode is how a lease's holder proves itself to the cluster.
type Mode string

// The modes.
const (
	ModeServiceAccount Mode = "serviceaccount" // a service account per lease; works on every cluster
	ModeJWT            Mode = "jwt"            // a token of our grant issuer, which the API server is configured to trust; RBAC per lease
	ModeWebhook        Mode = "webhook"        // such a token, and nothing at the cluster: the API server asks Remit for every request
)

// The fixed names at the cluster; the manifests use them.
const (
	LeaseNamespace = "remit-leases"                       // holds the service accounts of leases and nothing else
	BrokerUser     = "system:serviceaccount:remit:broker" // what Remit is at the cluster
	GroupAgents    = "remit:agents"                       // every holder of a grant token
	groupLease     = "remit:lease:"                       // + name: the group of one lease
	labelLease     = Prefix + "/lease"                    // lease id
	labelInstall   = Prefix + "/installation"             // which Remit made it
	labelExpires   = Prefix + "/expires"                  // unix seconds
	leastTokenLife = 10 * time.Minute                     // the API server refuses less
	tokenLeeway    = time.Minute + 10*time.Second         // a token lives on by clock leeway and authentication cache
	maxTTL         = time.Hour                            // of a lease with a service account
	maxTokenTTL    = 5 * time.Minute                      // of a grant token; the API server's configuration says the same
)

// Config is a target of type kubernetes.
type Config struct {
	// Mode is serviceaccount (default), jwt or webhook.
	Mode Mode `yaml:"mode"`
	// Kubeconfig is the file with which Remit reaches the cluster as system:serviceaccount:remit:broker. Empty: the pod's own
	// service account.
	Kubeconfig string `yaml:"kubeconfig"`
	// Server is the API server's URL as agents reach it. Empty: as Remit does.
	Server string `yaml:"server"`
	// Namespaces are those that leases may be about; required, no wildcard.
	Namespaces []string `yaml:"namespaces"`
	// Installation tells Remits that share a cluster apart: 1 to 12 characters a-z, 0-9. Required.
	Installation string `yaml:"installation"`
	// Timeout of one request to the API server. Default 5s, at most 30s.
	Timeout time.Duration `yaml:"timeout"`
	// Audience of grant tokens, one per cluster; required in modes jwt and webhook.
	Audience string `yaml:"audience"`
	// Issuer is the `iss` of grant tokens, and Signer signs them; required in modes jwt and webhook.
	Issuer string `yaml:"-"`
	Signer Signer `yaml:"-"`
	// Now is the clock; default time.Now.
	Now func() time.Time `yaml:"-"`
	// Wrap, if set, wraps the transport to the API server: to count or delay requests in tests.
	Wrap func(http.RoundTripper) http.RoundTripper `yaml:"-"`
}

// Signer signs grant tokens with the grant issuer's key, which is no key of SVIDs (S1). It is safe for concurrent use.
type Signer interface {
	// Sign returns claims as a compact JWS; claims encodes to a JSON object.
	Sign(claims any) (string, error)
}

// Driver is the credential driver of one cluster. It is safe for concurrent use and keeps no state.
type Driver struct {
	cfg       Config
	client    kubernetes.Interface
	anonymous *rest.Config // the same cluster without Remit's credentials
	ca        string       // PEM
	guards    []guard
}

var (
	_ credential.Driver  = (*Driver)(nil)
	_ credential.Lister  = (*Driver)(nil)
	_ credential.Checker = (*Driver)(nil)
	_ credential.Planner = (*Driver)(nil)
)

var installationPattern = expr(`^[a-z0-9]{1,12}$`)

// New checks cfg and reads the kubeconfig. It sends nothing: Check tells whether the cluster is fit.
func New(cfg Config) (*Driver, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "kubernetes: the kubeconfig cannot be used", Cause: err,
			Hint: "name a kubeconfig file, or run in a pod with a service account"}
	}
	if rc.Insecure || rc.TLSClientConfig.Insecure {
		return nil, invalid("give the certificate authority instead", "insecure-skip-tls-verify is set")
	}
	if err := rest.LoadTLSFiles(rc); err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "kubernetes: a file that the kubeconfig names cannot be read", Cause: err}
	}
	rc.QPS, rc.Timeout, rc.UserAgent = -1, cfg.Timeout, "remit"
	rc.ContentType, rc.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	if cfg.Wrap != nil {
		rc.Wrap(cfg.Wrap)
	}
	if cfg.Server == "" {
		cfg.Server = rc.Host
	}
	d := &Driver{cfg: cfg, ca: string(rc.CAData), anonymous: rest.AnonymousClientConfig(rc)}
	if d.client, err = kubernetes.NewForConfig(rc); err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "kubernetes: the kubeconfig cannot be used", Cause: err}
	}
	d.guards, err = guards()
	return d, err
}

// Client returns what a client of the cluster needs to know and is no secret: server, ca (PEM), and the audience of grant
// tokens where there is one.
func (d *Driver) Client() map[string]string {
	return map[string]string{"server": d.cfg.Server, "ca": d.ca, "audience": d.cfg.Audience}
}

func (c *Config) complete() error {
	if c.Mode == "" {
		c.Mode = ModeServiceAccount
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Mode != ModeServiceAccount && c.Mode != ModeJWT && c.Mode != ModeWebhook:
		return invalid("write serviceaccount, jwt or webhook", "no mode %.40q", c.Mode)
	case !installationPattern.MatchString(c.Installation):
		return invalid("write 1 to 12 characters a-z and 0-9", "installation %.40q", c.Installation)
	case len(c.Namespaces) == 0:
		return invalid("list the namespaces that leases may be about", "namespaces is empty")
	case c.Timeout < 0 || c.Timeout > 30*time.Second:
		return invalid("write 1s to 30s", "timeout %s", c.Timeout)
	case c.Mode != ModeServiceAccount && (c.Audience == "" || c.Issuer == "" || c.Signer == nil):
		return invalid("set audience, and let the grant issuer sign", "mode %s needs audience, issuer and signer", c.Mode)
	}
	for _, ns := range c.Namespaces {
		if !labelPattern.MatchString(ns) || ns == LeaseNamespace || ns == "remit" || ns == "kube-system" {
			return invalid("list namespaces of workloads", "namespace %.80q cannot hold leases", ns)
		}
	}
	return nil
}

// Plan implements credential.Planner. It refuses what the cluster cannot hold.
func (d *Driver) Plan(l remit.Lease) (bounds, notBounded []string, worst time.Duration, err error) {
	s, err := d.plan(l)
	if err != nil {
		return nil, nil, 0, err
	}
	bounds, notBounded = s.bounds()
	switch d.cfg.Mode {
	case ModeServiceAccount: // from minting on, by the token alone: the binding stands until somebody deletes it
		worst = d.tokenLife(l) + tokenLeeway
	case ModeJWT:
		worst = 10 * time.Second // the API server's authentication cache
	}
	return bounds, notBounded, worst, nil
}

func (d *Driver) plan(l remit.Lease) (scope, error) {
	if _, err := remit.ParseLeaseID(string(l.ID)); err != nil {
		return scope{}, err
	}
	s, err := parseScope(l.Action, l.Scope)
	if err != nil {
		return s, err
	}
	//remit:guard S17 TestPlanRefusesWhatTheClusterCannotHold
	if !slices.Contains(d.cfg.Namespaces, s.namespace) {
		return s, invalid("list it under namespaces of the target", "namespace %q is not one of the target's", s.namespace)
	}
	limit := maxTTL
	if d.cfg.Mode != ModeServiceAccount {
		limit = maxTokenTTL
	}
	//remit:guard S12 TestPlanRefusesWhatTheClusterCannotHold
	if ttl := l.Expires.Sub(l.Issued); ttl <= 0 || ttl > limit {
		return s, invalid("shorten the permission's ttl", "a lease of %s is not possible: at most %s", ttl, limit)
	}
	return s, nil
}

// tokenLife is what is asked of TokenRequest: the lease's length, but never less than the API server gives.
func (d *Driver) tokenLife(l remit.Lease) time.Duration {
	return max(leastTokenLife, l.Expires.Sub(l.Issued).Truncate(time.Second))
}

// name is the name of everything made for a lease.
func (d *Driver) name(id remit.LeaseID) string {
	return "remit-" + d.cfg.Installation + "-" + string(id)
}

func (d *Driver) meta(l remit.Lease, namespace string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: d.name(l.ID), Namespace: namespace, Labels: map[string]string{
		labelLease: string(l.ID), labelInstall: d.cfg.Installation, labelExpires: strconv.FormatInt(l.Expires.Unix(), 10),
	}}
}

// Allowed says for the webhook authorizer whether a live lease's scope covers a request: the same rules that RBAC would hold.
func (d *Driver) Allowed(l remit.Lease, verb, group, resource, subresource, namespace, name string) bool {
	s, err := parseScope(l.Action, l.Scope)
	return err == nil && namespace == s.namespace && allows(s.rules(), verb, group, resource, subresource, name)
}

// parallel runs all of fs at once, waits for all, and joins their errors. An error does not cancel the others: a request cut
// off half-way has an unknown outcome.
func parallel(ctx context.Context, fs ...func(context.Context) error) error {
	errs := make(chan error, len(fs))
	for _, f := range fs {
		go func() { errs <- f(ctx) }()
	}
	var all []error
	for range fs {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}
