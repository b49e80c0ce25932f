// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"context"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"remit"
	"remit/internal/credential"
	"remit/internal/credential/credentialtest"
	"remit/internal/credential/kubernetes"
)

// blind is a driver whose trials see nothing.
type blind struct{ *kubernetes.Driver }

func (blind) Try(context.Context, remit.Lease, remit.Credential) ([]remit.Trial, error) {
	return []remit.Trial{{Act: "apply", Granted: true, Outcome: remit.TrialPassed}, {Act: "read secrets", Outcome: remit.TrialRefused}}, nil
}

func TestSuiteNoticesBlindTrials(t *testing.T) {
	credentialtest.BlindMustFail(t, live(func(d credential.Driver) credential.Driver { return blind{d.(*kubernetes.Driver)} }))
}

// Every action's lease is tried; whatever the API server answers that is neither yes nor no is shown, so that a trial whose
// request is malformed does not hide as not tried.
func TestTrialsOfEveryAction(t *testing.T) {
	ns := target(t)
	_, err := shared.admin.AppsV1().Deployments(ns).Create(t.Context(), deployment("old", func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Image = oldImage
		d.Spec.Template.Spec.Containers[0].Command = []string{"serve"}
	}), metav1.CreateOptions{})
	must(t, err)
	object := remit.Args{"namespace": remit.StringValue(ns), "kind": remit.StringValue("Deployment"), "name": remit.StringValue("old")}
	d := newDriver(t, ns)
	for what, l := range map[string]remit.Lease{
		"apply of a new deployment": applyLease(ns, "Deployment", "foo", nil),
		"apply of an old one":       applyLease(ns, "Deployment", "old", nil),
		"apply of a manifest": applyLease(ns, "Deployment", "foo", remit.Args{
			"manifest": remit.StringValue(strings.ReplaceAll(written["Deployment"], "FOO", goodImage))}),
		"apply of existing, none there": applyLease(ns, "Deployment", "foo", remit.Args{"existing": remit.BoolValue(true)}),
		"apply of existing, there":      applyLease(ns, "Deployment", "old", remit.Args{"existing": remit.BoolValue(true)}),
		"apply of a stateful set":       applyLease(ns, "StatefulSet", "foo", nil),
		"apply of a daemon set":         applyLease(ns, "DaemonSet", "foo", nil),
		"apply of a job":                applyLease(ns, "Job", "foo", nil),
		"apply of a cron job":           applyLease(ns, "CronJob", "foo", nil),
		"get":                           newLease("kubernetes.get", object),
		"delete":                        newLease("kubernetes.delete", object),
		"list":                          newLease("kubernetes.list", remit.Args{"namespace": object["namespace"], "kind": object["kind"]}),
		"list of pods":                  newLease("kubernetes.list", remit.Args{"namespace": object["namespace"], "kind": remit.StringValue("Pod")}),
	} {
		c, err := d.Mint(t.Context(), l)
		must(t, err)
		trials, err := d.Try(t.Context(), l, c)
		must(t, err)
		v := remit.Verification{Trials: trials}
		v.Conclude()
		refused, asked := 0, 0
		for _, r := range trials {
			if r.Wrong() {
				t.Errorf("%s: %+v", what, r)
			}
			if r.Outcome == remit.TrialRefused {
				refused++
			}
			if r.How != "" {
				asked++
			}
			if r.How != "" && r.Outcome == remit.TrialNotTried {
				t.Errorf("%s: the trial shows nothing: %+v", what, r)
			}
		}
		t.Logf("%s: %d trials, %d refused", what, asked, refused)
		if !v.Holds {
			t.Errorf("%s: does not hold", what)
		}
		must(t, d.Revoke(t.Context(), l))
	}
}

// The names of what a trial tries are prose; this test says which must be there for a lease of kubernetes.apply.
func TestTrialsCoverTheRule(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	l := applyLease(ns, "Deployment", "foo", nil)
	c, err := d.Mint(t.Context(), l)
	must(t, err)
	trials, err := d.Try(t.Context(), l, c)
	must(t, err)
	var all strings.Builder
	for _, r := range trials {
		all.WriteString(r.Act + "\n")
	}
	for _, want := range []string{"another digest", "by its tag", "another Deployment", "another namespace", "secret", "exec", "attach",
		"portforward", "delete", "escalate", "token", "impersonate", "scale", "status", "ephemeral", "evict", "bind a pod", "command",
		"arguments", "environment", "lifecycle", "exec probe", "volume", "service account", "replicas", "admission policy"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("nothing tries %q:\n%s", want, all.String())
		}
	}
}
