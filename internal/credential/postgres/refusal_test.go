// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"remit"
	"remit/internal/credential/postgres"
	"remit/internal/testpostgres"
)

// config is a target that needs no server.
func config(change func(*postgres.Config)) postgres.Config {
	c := postgres.Config{Server: "127.0.0.1:5432", Database: "payments", Installation: "main1", Views: views}
	if change != nil {
		change(&c)
	}
	return c
}

func view(change func(*postgres.View)) func(*postgres.Config) {
	return func(c *postgres.Config) {
		v := postgres.View{Name: "rows", Table: "public.transactions", Columns: []string{"id"}, Rows: map[string]string{"customer_id": "bigint"}}
		change(&v)
		c.Views = []postgres.View{v}
	}
}

func TestInjectionThroughTheFile(t *testing.T) {
	for name, change := range map[string]func(*postgres.Config){
		"installation":           func(c *postgres.Config) { c.Installation = "a'; DROP" },
		"database":               func(c *postgres.Config) { c.Database = `payments" --` },
		"server":                 func(c *postgres.Config) { c.Server = "host=evil user=x:5432" },
		"view":                   view(func(v *postgres.View) { v.Name = `x"; DROP TABLE y; --` }),
		"view of ours":           view(func(v *postgres.View) { v.Name = "scope" }),
		"table":                  view(func(v *postgres.View) { v.Table = `public.x"; DROP TABLE y; --` }),
		"table without a schema": view(func(v *postgres.View) { v.Table = "transactions" }),
		"catalog":                view(func(v *postgres.View) { v.Table = "pg_catalog.pg_authid" }),
		"our own schema":         view(func(v *postgres.View) { v.Table = "remit.scope" }),
		"column":                 view(func(v *postgres.View) { v.Columns = []string{"id, (SELECT 1)"} }),
		"read":                   view(func(v *postgres.View) { v.Action, v.Reads = "update", []string{"*"} }),
		"key":                    view(func(v *postgres.View) { v.Rows = map[string]string{"1=1 OR x": "bigint"} }),
		"type":                   view(func(v *postgres.View) { v.Rows = map[string]string{"customer_id": "bigint[]) OR true --"} }),
	} {
		if _, err := postgres.New(config(change)); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestViewsThatHoldNothing(t *testing.T) {
	for name, change := range map[string]func(*postgres.View){
		"no rows": func(v *postgres.View) { v.Rows = nil },
		"five keys": func(v *postgres.View) {
			v.Rows = map[string]string{"a": "text", "b": "text", "c": "text", "d": "text", "e": "text"}
		},
		"a key that can be changed":   func(v *postgres.View) { v.Action, v.Columns = "update", []string{"customer_id"} },
		"insert without its key":      func(v *postgres.View) { v.Action = "insert" },
		"no columns":                  func(v *postgres.View) { v.Columns = nil },
		"delete with columns":         func(v *postgres.View) { v.Action = "delete" },
		"a mask over whose it is":     func(v *postgres.View) { v.Mask = []string{"customer_id"} },
		"a mask over nothing":         func(v *postgres.View) { v.Mask = []string{"note"} },
		"a mask at the table":         func(v *postgres.View) { v.RowSecurity, v.Mask = true, []string{"id"} },
		"a limit where it is changed": func(v *postgres.View) { v.Action, v.Columns, v.LimitBy = "update", []string{"amount"}, "id" },
		"a limit at the table":        func(v *postgres.View) { v.RowSecurity, v.LimitBy = true, "id" },
		"an action that is none":      func(v *postgres.View) { v.Action = "truncate" },
	} {
		if _, err := postgres.New(config(view(change))); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlanRefusesWhatTheDatabaseCannotHold(t *testing.T) {
	d, err := postgres.New(config(nil))
	if err != nil {
		t.Fatal(err)
	}
	key := func(v remit.Value) remit.Value { return remit.ObjectValue(map[string]remit.Value{"customer_id": v}) }
	big, _ := remit.NumberValue("9223372036854775808")
	half, _ := remit.NumberValue("0.5")
	many := make([]remit.Value, 1001)
	for i := range many {
		many[i] = remit.IntValue(int64(i))
	}
	for name, change := range map[string]func(*remit.Lease){
		"another argument":   func(l *remit.Lease) { l.Scope["limit"] = remit.IntValue(5) },
		"another table":      func(l *remit.Lease) { l.Scope["table"] = text("public.salaries") },
		"table as a list":    func(l *remit.Lease) { l.Scope["table"] = list("public.transactions") },
		"a column more":      func(l *remit.Lease) { l.Scope["columns"] = list("id", "customer_id", "amount", "created", "note") },
		"columns of no view": func(l *remit.Lease) { l.Scope["columns"] = list("id") },
		"no columns":         func(l *remit.Lease) { delete(l.Scope, "columns") },
		"empty columns":      func(l *remit.Lease) { l.Scope["columns"] = remit.ListValue() },
		"no rows":            func(l *remit.Lease) { delete(l.Scope, "rows") },
		"rows as text":       func(l *remit.Lease) { l.Scope["rows"] = text("customer_id = 5") },
		"no key":             func(l *remit.Lease) { l.Scope["rows"] = remit.ObjectValue(nil) },
		"another key": func(l *remit.Lease) {
			l.Scope["rows"] = remit.ObjectValue(map[string]remit.Value{"id": remit.IntValue(5)})
		},
		"a key as text":           func(l *remit.Lease) { l.Scope["rows"] = key(text("5")) },
		"a key that is null":      func(l *remit.Lease) { l.Scope["rows"] = key(remit.Value{}) },
		"a key beyond its type":   func(l *remit.Lease) { l.Scope["rows"] = key(big) },
		"a key with a fraction":   func(l *remit.Lease) { l.Scope["rows"] = key(half) },
		"no values":               func(l *remit.Lease) { l.Scope["rows"] = key(remit.ListValue()) },
		"too many values":         func(l *remit.Lease) { l.Scope["rows"] = key(remit.ListValue(many...)) },
		"another action":          func(l *remit.Lease) { l.Action = "postgres.truncate" },
		"another action's scope":  func(l *remit.Lease) { l.Action = "postgres.delete" },
		"longer than an hour":     func(l *remit.Lease) { l.Expires = l.Issued.Add(2 * time.Hour) },
		"an id that is none":      func(l *remit.Lease) { l.ID = "lease-'; DROP ROLE x" },
		"reads where none belong": func(l *remit.Lease) { l.Scope["reads"] = list("id") },
	} {
		l := lease("transactions")
		change(&l)
		if _, _, _, err := d.Plan(l); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	bounds, not, worst, err := d.Plan(lease("transactions"))
	if err != nil || len(bounds) == 0 || len(not) == 0 || worst == 0 {
		t.Errorf("bounds %v, not %v, worst case %v: %v", bounds, not, worst, err)
	}
}

func TestServerMustProveItself(t *testing.T) {
	d, err := postgres.New(config(func(c *postgres.Config) { c.Server = "db.example.com:5432" }))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Client()["sslmode"]; got != "verify-full" {
		t.Errorf("a host of the network: sslmode %s", got)
	}
	if server == nil {
		t.Skip(testpostgres.ErrMissing)
	}
	plain := newDatabase(t, nil) // its server knows no TLS
	plain.cfg.CA = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(plain.cfg.CA, certificate(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := plain.remake().Check(t.Context()); err == nil || !strings.Contains(errorText(err), "TLS") {
		t.Errorf("spoke to a server that did not prove itself: %v", errorText(err))
	}
}

// certificate is a root of nobody's.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestValuesAreValues: whatever stands in a scope, the statement that makes the lease is the same, and the database holds exactly
// those values.
func TestValuesAreValues(t *testing.T) {
	d := newDatabase(t, nil)
	exec(t, d.admin, `INSERT INTO public.transactions (id, customer_id, amount, region) VALUES (900001, 5, 1, 'us')`)
	rapid.Check(t, func(r *rapid.T) {
		region := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"' OR true --", "eu','us", `{eu,us}`, `\`, `"us"`, "eu\x00", "NULL", "us\n", "%", "$1"})).Draw(r, "region")
		l := lease("notes")
		l.Scope["rows"] = remit.ObjectValue(map[string]remit.Value{"customer_id": remit.IntValue(rapid.Int64().Draw(r, "customer")), "region": text(region)})
		c, err := d.driver.Mint(t.Context(), l)
		if remit.CodeOf(err) == remit.CodeInvalid && (strings.ContainsRune(region, 0) || len(region) > 1024) {
			return
		}
		if err != nil {
			r.Fatalf("mint: %v", errorText(err))
		}
		var held string
		if err := d.admin.QueryRow(t.Context(), "SELECT text2[1] FROM remit.scope WHERE role = $1", c.Fields["user"]).Scan(&held); err != nil || held != region {
			r.Fatalf("%q is held as %q: %v", region, held, err)
		}
		var seen, base int
		if seen, err = count(t.Context(), c, "SELECT count(*) FROM remit.notes"); err != nil {
			r.Fatal(err)
		}
		err = d.admin.QueryRow(t.Context(), "SELECT count(*) FROM public.transactions WHERE customer_id = $1::text::bigint AND region = $2", l.Scope["rows"].Field("customer_id").Text(), region).Scan(&base)
		if err != nil || seen != base {
			r.Fatalf("%d rows seen, %d are in scope: %v", seen, base, err)
		}
		if err := d.driver.Revoke(t.Context(), l); err != nil {
			r.Fatal(errorText(err))
		}
	})
}

// errorText is an error with its cause, as the operator's log has it.
func errorText(err error) string {
	if e, ok := errors.AsType[*remit.Error](err); ok && e.Cause != nil {
		return err.Error() + ": " + e.Cause.Error()
	}
	if err == nil {
		return ""
	}
	return err.Error()
}
