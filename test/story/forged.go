// SPDX-License-Identifier: Apache-2.0

package story

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"remit"
)

// WithoutLease makes a login that no decision stands behind, with the broker's own password, and reads with it what the view shows of one
// value. It has to be reported.
func (s *Story) WithoutLease(ctx context.Context, db *Database, password, view string, value int) error {
	broker := Login{Host: db.Host, Port: fmt.Sprint(db.Port), Database: db.Name, User: "remit_main1_broker", Password: password}
	c, err := db.Connect(ctx, &broker)
	if err != nil {
		return err
	}
	defer c.Close(ctx) //nolint:errcheck // it is over
	name := strings.TrimPrefix(string(remit.NewLeaseID()), "lease-")
	made := broker
	made.User, made.Password = "remit_main1_"+name, s.Word("made")
	s.Ask("with the broker's own password: make a login for %d in %s, and read", value, view)
	verifier, err := scram(made.Password)
	if err != nil {
		return err
	}
	if _, err := c.Exec(ctx, `SELECT remit.lease_begin(jsonb_build_array(jsonb_build_object('lease', $1::text, 'verifier', $2::text, 'of_view', $3::text,
		'until', now() + interval '5 minutes', 'k1', $4::text[])), (SELECT digest FROM remit.installed))`, name, verifier, view, []string{fmt.Sprint(value)}); err != nil {
		return fmt.Errorf("make a login: %w", err)
	}
	mark := s.Word("forged")
	sql := "SELECT count(*) > 0 FROM " + view + " /* " + mark + " */"
	if r := db.PSQL(ctx, &made, sql); r.Code != 0 || r.Out != "t" {
		return fmt.Errorf("it does not work, so nothing is shown: %s", r)
	}
	began := time.Now()
	for end := began.Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		r := s.Remit(ctx, "ledger", "list", "--kind", "finding", "--limit", "1000", "-o", "json")
		if r.Code == 0 && strings.Contains(r.Out, "act_without_grant") && strings.Contains(r.Out, made.User) && strings.Contains(r.Out, mark) {
			s.Told("%s", "reported: act_without_grant, "+made.User+": "+sql, time.Since(began))
			return nil
		}
	}
	return errors.New("a statement of a login without a lease is not reported")
}

// scram is what PostgreSQL keeps of a password (RFC 5803).
func scram(password string) (string, error) {
	salt := []byte("salt of a story!")
	salted, err := pbkdf2.Key(sha256.New, password, salt, 4096, sha256.Size)
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		_, _ = h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$4096:%s$%s:%s", b64(salt), b64(stored[:]), b64(mac("Server Key"))), err
}
