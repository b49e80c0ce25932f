// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"remit"
)

// Mint implements credential.Driver: one Role with the lease's rules, its RoleBinding, and, in mode serviceaccount, a
// ServiceAccount and a token of it; two round trips. All that Check reads is read at every mint, never from a cache: a policy
// that was taken away a moment ago must not be missed. The reads go beside the first two creates, which give nobody
// anything; the binding, which is the authority, comes after they were answered.
func (d *Driver) Mint(ctx context.Context, l remit.Lease) (remit.Credential, error) {
	s, err := d.plan(l)
	if err != nil {
		return remit.Credential{}, err
	}
	now := d.cfg.Now()
	var cancel context.CancelFunc = func() {}
	// The deadline also ends the client library's own retries, so no create is sent after MintBefore; one that is over lets none out.
	//remit:guard S18 TestMintIsNeverSentTooLate
	ctx, cancel = context.WithTimeout(ctx, min(l.MintBefore.Sub(now), l.Expires.Sub(now)))
	defer cancel()
	var t token
	switch d.cfg.Mode {
	case ModeServiceAccount:
		err = parallel(ctx,
			func(ctx context.Context) (err error) { t, err = d.mintToken(ctx, l); return err },
			func(ctx context.Context) error { return d.mintBinding(ctx, l, &s) })
	case ModeJWT:
		if err = d.mintBinding(ctx, l, &s); err == nil {
			t, err = d.signToken(l)
		}
	default:
		if err = d.Check(ctx); err == nil {
			t, err = d.signToken(l)
		}
	}
	if err != nil {
		return remit.Credential{}, unavailable(l, err)
	}
	return d.answer(l, &s, t), nil
}

// unavailable keeps our own codes and says for everything else that the cluster did not do it.
func unavailable(l remit.Lease, err error) error {
	if e, ok := errors.AsType[*remit.Error](err); ok {
		return e
	}
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "kubernetes: the cluster did not make the credential", Cause: err,
		Hint: "remit doctor TARGET shows what is missing", ID: string(l.ID)}
}

func (d *Driver) answer(l remit.Lease, s *scope, t token) remit.Credential {
	c := remit.Credential{
		Secret: t.secret, Type: "kubernetes", Expires: l.Expires, Native: t.expires, IDs: []string{"JTI=" + t.jti},
		Fields: map[string]string{"server": d.cfg.Server, "ca": d.ca, "namespace": s.namespace},
	}
	c.Bounds, c.NotBounded, c.WorstCase, _ = d.Plan(l) // planned above with no error
	return c
}

type token struct {
	secret  remit.Secret
	jti     string
	expires time.Time
}

// mintToken makes the ServiceAccount and asks for a token of it.
func (d *Driver) mintToken(ctx context.Context, l remit.Lease) (token, error) {
	accounts := d.client.CoreV1().ServiceAccounts(LeaseNamespace)
	no := false
	_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: d.meta(l, LeaseNamespace), AutomountServiceAccountToken: &no},
		metav1.CreateOptions{})
	if err != nil {
		return token{}, fmt.Errorf("create service account: %w", err)
	}
	seconds := int64(d.tokenLife(l) / time.Second)
	answer, err := accounts.CreateToken(ctx, d.name(l.ID),
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return token{}, fmt.Errorf("request token: %w", err)
	}
	jti, err := tokenID(answer.Status.Token)
	if err != nil {
		return token{}, fmt.Errorf("read token: %w", err)
	}
	return token{remit.NewSecret(answer.Status.Token), jti, answer.Status.ExpirationTimestamp.Time}, nil
}

// mintBinding makes the Role, sees the guards, and only then binds. The Role goes first: without the right "bind" on it, the
// API server resolves its rules when it is bound, and answers NotFound for one that is not there.
func (d *Driver) mintBinding(ctx context.Context, l remit.Lease, s *scope) error {
	seen := parallel(ctx, d.Check, func(ctx context.Context) error {
		_, err := d.client.RbacV1().Roles(s.namespace).Create(ctx,
			&rbacv1.Role{ObjectMeta: d.meta(l, s.namespace), Rules: s.rules()}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create role: %w", err)
		}
		return nil
	})
	//remit:guard S19 TestNothingIsMintedWithoutItsGuards
	if seen != nil {
		return seen
	}
	subject := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Name: d.name(l.ID), Namespace: LeaseNamespace}
	if d.cfg.Mode == ModeJWT {
		subject = rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: groupLease + d.name(l.ID)}
	}
	_, err := d.client.RbacV1().RoleBindings(s.namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: d.meta(l, s.namespace), Subjects: []rbacv1.Subject{subject},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: d.name(l.ID)},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create role binding: %w", err)
	}
	return nil
}
