// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"remit"
)

// The admission policies that must stand at the cluster: the same bytes as deploy/kubernetes/policies.yaml.
//
//go:embed manifest/policies.yaml
var policies []byte

// guard is one object without which nothing is minted, and the digest of its specification.
type guard struct {
	binding bool
	name    string
	digest  remit.Digest
}

// guards reads the embedded manifest. The API server writes defaults into a specification; the manifest spells them all, so
// that equal means equal.
func guards() ([]guard, error) {
	var out []guard
	for _, doc := range bytes.Split(policies, []byte("\n---\n")) {
		var meta metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			return nil, fmt.Errorf("read embedded policies: %w", err)
		}
		g := guard{binding: meta.Kind == "ValidatingAdmissionPolicyBinding", name: meta.Name}
		var err error
		if g.binding {
			var b admissionv1.ValidatingAdmissionPolicyBinding
			err = yaml.UnmarshalStrict(doc, &b)
			g.digest = specDigest(b.Spec)
		} else {
			var p admissionv1.ValidatingAdmissionPolicy
			err = yaml.UnmarshalStrict(doc, &p)
			g.digest = specDigest(p.Spec)
		}
		if err != nil {
			return nil, fmt.Errorf("read embedded policy %s: %w", g.name, err)
		}
		out = append(out, g)
	}
	return out, nil
}

func specDigest(spec any) remit.Digest {
	b, err := json.Marshal(spec)
	if err != nil {
		return "" // plain structs always encode; an empty digest equals nothing
	}
	return remit.DigestOf(b)
}

// Check implements credential.Checker. It asks the cluster each time: both policies and their bindings stand there exactly as
// this version of Remit has them, and Remit is the account whose acts the second policy bounds.
func (d *Driver) Check(ctx context.Context) error {
	fs := []func(context.Context) error{d.checkSelf}
	for _, g := range d.guards {
		fs = append(fs, func(ctx context.Context) error { return d.checkGuard(ctx, g) })
	}
	return parallel(ctx, fs...)
}

// checkGuard reads one guard from storage: a get by name is not served from the watch cache.
func (d *Driver) checkGuard(ctx context.Context, g guard) error {
	api := d.client.AdmissionregistrationV1()
	var meta metav1.ObjectMeta
	var digest remit.Digest
	kind, err := "ValidatingAdmissionPolicy", error(nil)
	if g.binding {
		kind = "ValidatingAdmissionPolicyBinding"
		b, getErr := api.ValidatingAdmissionPolicyBindings().Get(ctx, g.name, metav1.GetOptions{})
		err = getErr
		if err == nil {
			meta, digest = b.ObjectMeta, specDigest(b.Spec)
		}
	} else {
		p, getErr := api.ValidatingAdmissionPolicies().Get(ctx, g.name, metav1.GetOptions{})
		err = getErr
		if err == nil {
			meta, digest = p.ObjectMeta, specDigest(p.Spec)
		}
	}
	refuse := func(what string, cause error) error {
		return &remit.Error{Code: remit.CodeUnavailable, Msg: fmt.Sprintf("kubernetes: %s %s %s", kind, g.name, what), Cause: cause,
			Hint: "kubectl apply -f deploy/kubernetes/policies.yaml of this version of Remit"}
	}
	switch {
	case apierrors.IsNotFound(err): // the next case refuses as well, less clearly
		return refuse("is absent", nil)
	case err != nil:
		return refuse("cannot be read", err)
	case meta.DeletionTimestamp != nil: // a finalizer can let it stand on for a while
		return refuse("is being deleted", nil)
	case d.cfg.Now().Sub(lastChange(meta)) < settle:
		return refuse("was made or changed a moment ago, and API servers may not hold to it yet: try again in "+settle.String(), nil)
	//remit:guard S19 TestNothingIsMintedWithoutItsGuards
	case digest == "" || digest != g.digest:
		return refuse(fmt.Sprintf("was changed: uid %s, generation %d, specification %s, expected %s", meta.UID, meta.Generation, digest, g.digest), nil)
	}
	return nil
}

// settle is how long a guard must have stood: API servers take up a policy some 0.3 s after it was written.
const settle = 3 * time.Second

// lastChange is when the specification was last written, by the cluster's clock, in whole seconds.
func lastChange(meta metav1.ObjectMeta) time.Time {
	last := meta.CreationTimestamp.Time
	for _, f := range meta.ManagedFields {
		if f.Subresource == "" && f.Time != nil && f.Time.After(last) {
			last = f.Time.Time
		}
	}
	return last
}

// checkSelf refuses an account other than the one that the broker's policy and rights are made for: with an administrator's
// kubeconfig nothing would bound Remit itself.
func (d *Driver) checkSelf(ctx context.Context) error {
	r, err := d.client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return &remit.Error{Code: remit.CodeUnavailable, Msg: "kubernetes: the cluster does not say who Remit is", Cause: err}
	}
	//remit:guard S19 TestCheckRefusesAnAdministratorsKubeconfig
	if r.Status.UserInfo.Username != BrokerUser {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("kubernetes: Remit is %.120q at the cluster", r.Status.UserInfo.Username),
			Hint: "use a kubeconfig with a token of " + BrokerUser + ": deploy/kubernetes/README.md"}
	}
	return nil
}
