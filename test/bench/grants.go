// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"remit"
	"remit/internal/testcluster"
)

const (
	rbac     = "/apis/rbac.authorization.k8s.io/v1/namespaces/" + leaseNamespace
	accounts = "/api/v1/namespaces/remit-leases/serviceaccounts"
	reviews  = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
	guards   = "/apis/admissionregistration.k8s.io/v1/"
	readable = "/apis/apps/v1/namespaces/" + leaseNamespace + "/deployments/shop" // what the credential may read
)

// grants compares a grant, from the agent's request to the credential, with the Kubernetes calls that it makes, sent by hand in
// the same order and at the same time where it does so, as the same account.
func (b *bench) grants(ctx context.Context, c *cluster) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	raw := trusts(c.servers[0])
	rules, err := c.rules(ctx, client)
	if err != nil {
		return err
	}
	var ours, theirs []float64
	for range 12 * b.rounds {
		began := time.Now()
		g, err := c.grant(ctx, client)
		if err != nil {
			return err
		}
		ours = append(ours, ms(time.Since(began)))
		if err := c.revoke(ctx, g.Grant); err != nil {
			return err
		}
		name := "remit-bench-" + string(remit.NewLeaseID())
		began = time.Now()
		if err := c.raw(ctx, raw, name, rules); err != nil {
			return err
		}
		theirs = append(theirs, ms(time.Since(began)))
		for _, path := range []string{rbac + "/rolebindings/", accounts + "/", rbac + "/roles/"} {
			if err := c.must(ctx, raw, http.MethodDelete, path+name, nil); err != nil {
				return err
			}
		}
	}
	b.table.add(row{what: "grant of a Kubernetes credential", ours: figure(median(ours)) + " ms", theirs: "its raw Kubernetes calls: " + figure(median(theirs)) + " ms",
		got: median(ours) / median(theirs), want: 1.5, unit: "× time"})
	return nil
}

// rules are those of a lease's role, as the administrator sees them.
func (c *cluster) rules(ctx context.Context, client *http.Client) (any, error) {
	g, err := c.grant(ctx, client)
	if err != nil {
		return nil, err
	}
	text, err := kubectl(ctx, c.servers[0].Kubeconfig, "-n", leaseNamespace, "get", "roles", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Rules any `json:"rules"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Items) != 1 {
		return nil, fmt.Errorf("%d roles where one lease stands: %w", len(list.Items), errors.Join(err))
	}
	return list.Items[0].Rules, c.revoke(ctx, g.Grant)
}

func (c *cluster) must(ctx context.Context, client *http.Client, method, path string, body any) error {
	status, text, err := call(ctx, client, c.servers[0], c.broker, method, path, body)
	if err == nil && status >= 300 {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, text)
	}
	return err
}

// raw makes what a lease is at the cluster: account and token on one side; the guards, who Remit is, and the role, then the
// binding, on the other.
func (c *cluster) raw(ctx context.Context, client *http.Client, name string, rules any) error {
	meta := object{"name": name}
	post := func(path string, body object) error {
		return c.must(ctx, client, http.MethodPost, path, body)
	}
	get := func(path string) func() error {
		return func() error { return c.must(ctx, client, http.MethodGet, path, nil) }
	}
	return together(
		func() error {
			if err := post(accounts, object{"metadata": meta, "automountServiceAccountToken": false}); err != nil {
				return err
			}
			return post(accounts+"/"+name+"/token", object{"spec": object{"expirationSeconds": 600}})
		},
		func() error {
			err := together(
				get(guards+"validatingadmissionpolicies/remit-agents"), get(guards+"validatingadmissionpolicybindings/remit-agents"),
				get(guards+"validatingadmissionpolicies/remit-broker"), get(guards+"validatingadmissionpolicybindings/remit-broker"),
				func() error { return post(reviews, object{}) },
				func() error { return post(rbac+"/roles", object{"metadata": meta, "rules": rules}) })
			if err != nil {
				return err
			}
			return post(rbac+"/rolebindings", object{"metadata": meta,
				"subjects": []any{object{"kind": "ServiceAccount", "name": name, "namespace": "remit-leases"}},
				"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}})
		})
}

func together(fs ...func() error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(fs))
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// plugin measures a whole process that asks for a credential, as kubectl starts it.
func (b *bench) plugin(ctx context.Context, c *cluster) error {
	file := b.path("run.token")
	if err := os.WriteFile(file, []byte(c.token), 0o600); err != nil {
		return err
	}
	// The agent's other certificate: the process fetches an identity of its own, and its run token is bound to it.
	var whole []float64
	for range 4 * b.rounds {
		d, _, err := took(ctx, []string{"SPIFFE_ENDPOINT_SOCKET=" + c.workload(), "REMIT_URL=https://" + c.address, "REMIT_RUN_TOKEN_FILE=" + file},
			b.remit, "credential", "token", "--for", "apply")
		if err != nil {
			return err
		}
		whole = append(whole, ms(d))
	}
	b.table.add(row{what: "remit credential, a whole process with its grant", ours: figure(median(whole)) + " ms", got: median(whole), want: 50, unit: "ms"})
	return nil
}

// revocations measures from the order to revoke until every API server refuses the credential, which is used all the time.
func (b *bench) revocations(ctx context.Context, c *cluster, mode string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	var all []time.Duration
	for range 20 * b.rounds {
		g, err := c.grant(ctx, client)
		if err != nil {
			return err
		}
		d, err := c.untilRefused(ctx, &g)
		if err != nil {
			return err
		}
		all = append(all, d)
	}
	slices.Sort(all)
	want := map[string]float64{"serviceaccount": 100, "webhook": 50}[mode]
	p99 := ms(quantile(all, 0.99))
	b.table.add(row{what: fmt.Sprintf("grant revoke to first refusal, %s, %d API servers, p99 of %d", mode, len(c.servers), len(all)),
		ours: fmt.Sprintf("p50 %s ms, p99 %s ms", figure(ms(quantile(all, 0.5))), figure(p99)), got: p99, want: want, unit: "ms"})
	return nil
}

func (c *cluster) untilRefused(ctx context.Context, g *granted) (time.Duration, error) {
	clients := make([]*http.Client, len(c.servers))
	for i, s := range c.servers { // usable everywhere, and connected
		clients[i] = trusts(s)
		defer clients[i].CloseIdleConnections()
		if err := until(ctx, clients[i], s, g.Token, http.StatusNotFound, 1); err != nil {
			return 0, fmt.Errorf("the fresh credential does not work: %w", err)
		}
	}
	ends := make([]time.Time, len(c.servers))
	errs := make([]error, len(c.servers))
	var wg sync.WaitGroup
	began := time.Now()
	for i, s := range c.servers {
		wg.Go(func() {
			errs[i] = until(ctx, clients[i], s, g.Token, http.StatusForbidden, 1)
			ends[i] = time.Now()
			errs[i] = errors.Join(errs[i], until(ctx, clients[i], s, g.Token, http.StatusForbidden, 3))
		})
	}
	err := c.revoke(ctx, g.Grant)
	wg.Wait()
	return slices.MaxFunc(ends, time.Time.Compare).Sub(began), errors.Join(append(errs, err)...)
}

// until asks until the answer has the status so many times in a row. A credential that is gone altogether is refused, too.
func until(ctx context.Context, client *http.Client, s *testcluster.Cluster, token string, want, times int) error {
	var last int
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		status, _, err := call(ctx, client, s, token, http.MethodGet, readable, nil)
		if err != nil {
			return err
		}
		if status == want || want == http.StatusForbidden && status == http.StatusUnauthorized {
			if times--; times == 0 {
				return nil
			}
		}
		last = status
	}
	return fmt.Errorf("status %d after ten seconds, not %d", last, want)
}
