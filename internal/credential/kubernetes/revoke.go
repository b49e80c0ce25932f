// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"remit"
)

// Revoke implements credential.Driver. The binding goes first: rights end with it in milliseconds, while a deleted service
// account's token lives on in the API server's cache for ten seconds. In mode webhook there is nothing to delete: the API
// server asks about every request, and the lease's record is the answer.
func (d *Driver) Revoke(ctx context.Context, l remit.Lease) error {
	if _, err := remit.ParseLeaseID(string(l.ID)); err != nil {
		return err
	}
	if d.cfg.Mode == ModeWebhook {
		return nil
	}
	// The namespace alone is needed, and it is taken as it was recorded: also for a scope that is not granted any more.
	if ns := l.Scope["namespace"]; !ns.IsNull() {
		if !labelPattern.MatchString(ns.Text()) {
			return invalid("", "lease %s names no namespace", l.ID)
		}
		return remove(ctx, d.client, ns.Text(), d.name(l.ID))
	}
	// A lease of which nothing but the id is known stood in a listing and is on no record, as after a restored backup.
	var errs []error
	for _, ns := range d.cfg.Namespaces {
		errs = append(errs, remove(ctx, d.client, ns, d.name(l.ID)))
	}
	return errors.Join(errs...)
}

// remove deletes what has that name, authority first. It goes on after errors and joins them.
func remove(ctx context.Context, c kubernetes.Interface, namespace, name string) error {
	gone := func(what string, err error) error {
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("delete %s %s: %w", what, name, err)
	}
	now := metav1.DeleteOptions{}
	return errors.Join(
		gone("role binding", c.RbacV1().RoleBindings(namespace).Delete(ctx, name, now)),
		gone("service account", c.CoreV1().ServiceAccounts(LeaseNamespace).Delete(ctx, name, now)),
		gone("role", c.RbacV1().Roles(namespace).Delete(ctx, name, now)),
	)
}

// List implements credential.Lister over the configured namespaces and the namespace of leases.
func (d *Driver) List(ctx context.Context) ([]remit.LeaseID, error) {
	if d.cfg.Mode == ModeWebhook {
		return nil, nil
	}
	found, err := standing(ctx, d.client, d.cfg.Namespaces, d.cfg.Installation)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "kubernetes: cannot list what stands at the cluster", Cause: err}
	}
	var ids []remit.LeaseID
	for _, o := range found {
		id, err := remit.ParseLeaseID(o.Labels[labelLease])
		//remit:guard S19 TestInstallationsKeepApart
		if err != nil || o.Name != d.name(id) {
			continue // not made by us, whatever its labels say
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// standing returns everything with this installation's label, from the API server's storage, not from its watch cache.
func standing(ctx context.Context, c kubernetes.Interface, namespaces []string, installation string) ([]metav1.ObjectMeta, error) {
	var found []metav1.ObjectMeta
	collect := func(list func(metav1.ListOptions) (next string, err error)) error {
		opts := metav1.ListOptions{LabelSelector: labelInstall + "=" + installation, Limit: 500}
		for {
			next, err := list(opts)
			if err != nil || next == "" {
				return err
			}
			opts.Continue = next
		}
	}
	for _, ns := range namespaces {
		err := errors.Join(collect(func(o metav1.ListOptions) (string, error) {
			l, err := c.RbacV1().RoleBindings(ns).List(ctx, o)
			for i := range l.Items {
				found = append(found, l.Items[i].ObjectMeta)
			}
			return l.Continue, err
		}), collect(func(o metav1.ListOptions) (string, error) {
			l, err := c.RbacV1().Roles(ns).List(ctx, o)
			for i := range l.Items {
				found = append(found, l.Items[i].ObjectMeta)
			}
			return l.Continue, err
		}))
		if err != nil {
			return nil, err
		}
	}
	err := collect(func(o metav1.ListOptions) (string, error) {
		l, err := c.CoreV1().ServiceAccounts(LeaseNamespace).List(ctx, o)
		for i := range l.Items {
			found = append(found, l.Items[i].ObjectMeta)
		}
		return l.Continue, err
	})
	return found, err
}

// Sweep runs the function Sweep for this driver's installation and namespaces, by its clock.
func (d *Driver) Sweep(ctx context.Context) (int, error) {
	return Sweep(ctx, d.client, d.cfg.Namespaces, d.cfg.Installation, d.cfg.Now())
}

// Sweep deletes everything of an installation whose lease ended before now, whether Remit lives or not: it is what runs in
// the cluster. It knows no leases and needs none: the end stands in a label. Objects whose end cannot be read are deleted,
// too. It returns how many leases it ended, and goes on after errors.
func Sweep(ctx context.Context, c kubernetes.Interface, namespaces []string, installation string, now time.Time) (int, error) {
	if !installationPattern.MatchString(installation) {
		return 0, invalid("write 1 to 12 characters a-z and 0-9", "installation %.40q", installation)
	}
	found, err := standing(ctx, c, namespaces, installation)
	if err != nil {
		return 0, err
	}
	type object struct{ namespace, name string }
	seen, leases := map[object]bool{}, map[string]bool{}
	var errs []error
	for _, o := range found { // bindings and roles come first
		//remit:guard S19 TestInstallationsKeepApart
		if !strings.HasPrefix(o.Name, "remit-"+installation+"-") {
			continue // another's, whatever its labels say
		}
		end, err := strconv.ParseInt(o.Labels[labelExpires], 10, 64)
		//remit:guard S12 TestSweepEndsWhatExpired
		if err == nil && now.Unix() <= end {
			continue
		}
		at := object{o.Namespace, o.Name}
		if at.namespace == LeaseNamespace && (leases[at.name] || len(namespaces) == 0) {
			continue // the account went with its binding
		}
		if at.namespace == LeaseNamespace {
			at.namespace = namespaces[0]
		}
		if !seen[at] {
			errs = append(errs, remove(ctx, c, at.namespace, at.name))
		}
		seen[at], leases[at.name] = true, true
	}
	return len(leases), errors.Join(errs...)
}
