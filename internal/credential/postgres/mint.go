// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
)

// Mint implements credential.Driver: one call, one transaction, which makes the login and its row of scope, after the server has
// seen that the view is as it was set up. Mints that come while others are under way share a call. The password is made here, and only its SCRAM
// verifier is sent.
func (d *Driver) Mint(ctx context.Context, l remit.Lease) (remit.Credential, error) {
	s, err := d.plan(l)
	if err != nil {
		return remit.Credential{}, err
	}
	now := d.cfg.Now()
	var cancel context.CancelFunc = func() {}
	// The deadline also ends waiting for a turn, for a connection and the repetition on a fresh one, so nothing is sent after MintBefore.
	//remit:guard S18 TestMintIsNeverSentTooLate
	ctx, cancel = context.WithTimeout(ctx, min(d.cfg.Timeout, l.MintBefore.Sub(now), l.Expires.Sub(now)))
	defer cancel()
	password, verifier, err := newPassword(d.cfg.Iterations)
	if err != nil {
		return remit.Credential{}, err
	}
	if err := d.gather.do(ctx, newMint(ctx, s.wanted(&l, verifier))); err != nil {
		return remit.Credential{}, unavailable("make the credential", l.ID, err)
	}
	return d.answer(l, &s, password), nil
}

func (d *Driver) answer(l remit.Lease, s *scope, password remit.Secret) remit.Credential {
	c := remit.Credential{Secret: password, Type: "postgres", Expires: l.Expires, Native: l.Expires, IDs: []string{d.role(l.ID)}, Fields: d.Client()}
	schema, name := s.view.relation()
	c.Fields["user"], c.Fields["view"] = d.role(l.ID), schema+"."+name
	c.Bounds, c.NotBounded = s.bounds(&d.cfg)
	c.WorstCase = clockSkew
	return c
}

// newPassword makes 192 random bits and their SCRAM-SHA-256 verifier as PostgreSQL stores it (RFC 5803):
// SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY.
func newPassword(iterations int) (remit.Secret, string, error) {
	var random [24 + 16]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	password := base64.RawURLEncoding.EncodeToString(random[:24])
	salt := random[24:]
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return remit.Secret{}, "", fmt.Errorf("hash a password: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return remit.NewSecret(password), fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}

// Revoke implements credential.Driver. The row of scope goes first, in a transaction of its own: from then on every statement of
// an open session sees nothing. Then its sessions, whose running statements and snapshots may be older; then the role.
func (d *Driver) Revoke(ctx context.Context, l remit.Lease) error {
	if _, err := remit.ParseLeaseID(string(l.ID)); err != nil {
		return err
	}
	var errs []error
	for _, step := range []string{"lease_stop", "lease_close", "lease_drop"} {
		if err := d.ends.exec(ctx, d.cfg.Timeout+endWaits, "SELECT remit."+step+"($1)", short(l.ID)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return unavailable("end the credential", l.ID, err)
	}
	return nil
}

// endWaits is how long the database itself waits for sessions to go.
const endWaits = 5 * time.Second

// List implements credential.Lister, from roles and rows of scope alike.
func (d *Driver) List(ctx context.Context) (ids []remit.LeaseID, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	err = d.ends.do(ctx, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, "SELECT remit.lease_list()")
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		ids = ids[:0]
		for _, name := range names {
			if id, err := remit.ParseLeaseID("lease-" + name); err == nil {
				ids = append(ids, id)
			}
		}
		return err
	})
	if err != nil {
		return nil, unavailable("list what stands", "", err)
	}
	return ids, nil
}
