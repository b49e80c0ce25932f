// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"remit/internal/gateway/login/logintest"
	"remit/internal/tool"
	"remit/test/story"
)

// The names that lead to the loopback for everything that is part of the story.
const (
	dbHost       = "db.company.example"
	paymentsHost = "payments.company.example"
)

// refund is one playing of the story.
type refund struct {
	*story.Story
	parts
	payments story.API
	db       *story.Database
	provider *logintest.Provider

	https, paymentsURL     string
	customer, another      int
	rows                   int    // of the customer
	sum                    string // of the customer's amounts
	word                   string // in the company's rules
	alice, bob, carol      string // who starts, who approves, who may not
	brokerPassword         string
	small40, large900, big int // amounts: without approval, with one, and the changed one
	run, grant, hold       string
	agent                  *story.Agent
	stolen                 story.Login
	open                   *pgx.Conn // a session that the thief keeps
}

func (s *refund) setUp(ctx context.Context) error {
	s.customer = 100 + s.Rand.IntN(800)
	s.another = s.customer + 1
	s.small40, s.large900 = 10+s.Rand.IntN(90), 101+s.Rand.IntN(4000)
	s.big = s.large900 + 1 + s.Rand.IntN(500)
	s.word, s.alice, s.bob, s.carol = s.Word("goodwill"), s.Word("alice"), s.Word("bob"), s.Word("carol")
	s.brokerPassword, s.payments.Key, s.payments.Answer = s.Secret("broker_"), s.Secret("pay_"), s.paid
	return s.Steps(ctx, []story.Chapter{
		{Name: "names of the company, on the loopback", Do: func(context.Context) error { return s.Hosts(dbHost, paymentsHost) }},
		{Name: "PostgreSQL, and transactions of 10 customers", Do: s.startDatabase}, {Name: "OpenID provider with three people", Do: s.startProvider},
		{Name: "payment API", Do: s.startPayments}, {Name: "programs", Do: s.build}, {Name: "the company's rules", Do: s.writeRules},
		{Name: "remit init", Do: s.init}, {Name: "agent, three tools, workflow, targets", Do: s.configure}, {Name: "remit serve", Do: s.Serve},
		{Name: "remit doctor --setup, run at the database", Do: s.prepareDatabase},
	})
}

func (s *refund) startDatabase(ctx context.Context) (err error) {
	if s.db, err = s.StartDatabase(ctx, dbHost, "payments"); err != nil {
		return err
	}
	return s.fill(ctx)
}

// fill makes the table. Amounts differ from customer to customer.
func (s *refund) fill(ctx context.Context) error {
	_, err := s.db.Admin.Exec(ctx, fmt.Sprintf(`CREATE TABLE public.transactions (id bigint PRIMARY KEY, customer_id bigint NOT NULL, amount numeric(10,2) NOT NULL, status text NOT NULL);
		INSERT INTO public.transactions SELECT i, %d + i %% 10, ((i * %d) %% 90000) / 100.0, 'paid' FROM generate_series(1, %d) i`,
		s.customer-4, 7+s.Rand.IntN(1000), 1000+s.Rand.IntN(500)), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return err
	}
	return s.db.Admin.QueryRow(ctx, "SELECT count(*), sum(amount)::text FROM public.transactions WHERE customer_id = $1", s.customer).Scan(&s.rows, &s.sum)
}

// startProvider starts the provider at which people log in. All three may approve, as far as their role goes; carol is not of finance.
func (s *refund) startProvider(context.Context) error {
	account := func(name string, groups ...string) logintest.Account {
		return logintest.Account{Subject: "s-" + name, Name: name, Groups: groups}
	}
	p, stop, err := logintest.Run(map[string]logintest.Account{s.alice: account(s.alice, "approvers", "finance"), s.bob: account(s.bob, "approvers", "finance"),
		s.carol: account(s.carol, "approvers", "sales")})
	if err != nil {
		return err
	}
	s.Stop(stop)
	s.provider = p
	return errors.Join(os.WriteFile(s.Path("provider.pem"), p.CA, 0o644), os.Mkdir(s.Path("people"), 0o700))
}

func (s *refund) startPayments(context.Context) (err error) {
	s.paymentsURL, err = s.ServeAPI(&s.payments, paymentsHost, s.Path("payments-ca.pem"))
	return err
}

// paid is the payment API's answer.
func (s *refund) paid(r *http.Request, _ []byte) any {
	if r.Method == http.MethodPost && r.URL.Path == "/v1/refunds" {
		return map[string]string{"status": "refunded"}
	}
	return nil
}

func (s *refund) build(ctx context.Context) error {
	return errors.Join(s.Programs(map[string]string{"remit": s.parts.remit}), s.Build(ctx, "remit/examples/refund/", map[string]string{
		"agent": s.Path("bin", "agent"), "knowledge": s.Path("tools", "knowledge", "knowledge"),
		"transactions": s.Path("tools", "transactions", "transactions"), "payments": s.Path("tools", "payments", "payments")}))
}

func (s *refund) writeRules(context.Context) error {
	return errors.Join(os.Mkdir(s.Path("rules"), 0o755), os.WriteFile(s.Path("rules", "refunds.md"),
		[]byte("# Refunds\nWhat was counted twice is refunded in full.\nFor "+s.word+": at most 5000, above 100 finance approves.\n"), 0o644))
}

// init makes the installation, and lets people log in.
func (s *refund) init(ctx context.Context) (err error) {
	if s.https, err = s.Init(ctx, "company.example", "desk"); err != nil {
		return err
	}
	file := s.Path("remit", "remit.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	people := fmt.Sprintf("people:\n  issuer: %s\n  client_id: %s\n  ca: %s\n  name: preferred_username\n  roles:\n  - {claim: groups, has: approvers, roles: [approver]}\n",
		s.provider.Issuer, logintest.ClientID, s.Path("provider.pem"))
	return os.WriteFile(file, append(b, people...), 0o600)
}

// configure puts in what a user of the example would: folders, digests, addresses, names.
func (s *refund) configure(context.Context) error {
	digest, err := story.DigestOf(s.Path("bin", "agent"))
	if err != nil {
		return err
	}
	db := fmt.Sprintf("%s:%d", dbHost, s.db.Port)
	put := map[string][][2]string{
		"agents.yaml": {{story.Digit(1), digest}},
		"refund.yaml": {{"operator/alice", "operator/" + s.alice}},
		"targets.yaml": {{dbHost + ":5432", db}, {"tunnel: true\n", "tunnel: true\naddresses: [127.0.0.1]\n"}, {"/etc/remit/db-ca.pem", s.db.CA},
			{"/etc/remit/secrets/db", s.Path("db.password")}, {"/var/log/postgresql/postgresql.json", s.db.Log()}, {"/etc/remit/secrets/payments", s.Path("payments.key")},
			{"url: https://" + paymentsHost + "\n", "url: " + s.paymentsURL + "\nca: " + s.Path("payments-ca.pem") + "\naddresses: [127.0.0.1]\n"}},
		"tools.yaml": {{"https://" + paymentsHost, s.paymentsURL}, {"/srv/refund/rules", s.Path("rules")}},
	}
	for i, name := range []string{"knowledge", "transactions", "payments"} {
		digest, err := tool.Digest(s.Path("tools", name))
		if err != nil {
			return err
		}
		put["tools.yaml"] = append(put["tools.yaml"], [2]string{"/opt/refund/" + name, s.Path("tools", name)}, [2]string{story.Digit(i + 2), string(digest)})
	}
	return errors.Join(s.Configure(filepath.Join(s.examples, "config"), put), os.WriteFile(s.Path("payments.key"), []byte(s.payments.Key), 0o600),
		os.WriteFile(s.Path("db.password"), []byte(s.brokerPassword), 0o600))
}

func (s *refund) prepareDatabase(ctx context.Context) error {
	return s.Prepare(ctx, s.db, "payments-db", s.brokerPassword)
}
