// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// ServerConfig is the server's own file, remit.yaml, with defaults filled in and paths absolute.
type ServerConfig struct {
	TrustDomain spiffeid.TrustDomain
	Data        string // the directory of state and keys
	Config      string // the directory of declarations
	HTTPS       string // host:port to listen on
	Names       []string
	Workload    string // socket of the SPIFFE Workload API
	Admin       string // socket of the management API
	Operators   []Operator
	Federates   []Federated // whose X.509-SVIDs count here
	People      *People     // nil: nobody logs in from elsewhere
	Jobs        []Job       // which CI jobs do
	Announce    []Announce  // webhooks that are told of what waits for people
	Metrics     SecretRef   // the bearer token that reads /metrics; zero: there is none
	Signals     []Signal    // receivers that are told of findings and suspensions
	Telemetry   *Telemetry  // nil: no traces are made, and no metrics sent
	AdminGroup  int         // may connect to the admin socket, whose uid still decides; -1: the server's user alone
	Issuer      string      // `iss` of JWT-SVIDs: an https URL
	GrantIssuer string      // `iss` of grant tokens; never that of JWT-SVIDs (S1)
	AllowOwnUID bool        // whether a process under the server's uid can be attested as more than level none
	Registry    RegistryConfig
	// SecondOpinion: one decision in so many is judged again by OPA (S32).
	SecondOpinion int
	Authors       Authors       // who signs the declarations
	Ceiling       CeilingConfig // what bounds them
	Witnesses     []Witness     // who cosigns the ledger's checkpoints
	Quorum        int           // of them; 0 is all
	Quotas        Quotas        // what each principal may ask (S35)
	Findings      Findings
}

// Witness is who cosigns the ledger's checkpoints.
type Witness struct {
	URL *url.URL
	Key string // as remit witness init printed it
}

// Operator is a person who is known by a uid on the admin socket (S2).
type Operator struct {
	Name    remit.Name
	UID     uint32
	Roles   []string
	Subject string // who it is at people's issuer; empty: a login cannot have this name
}

// RegistryConfig says how image tags are resolved.
type RegistryConfig struct {
	Timeout  time.Duration // 0: the registry package's default
	Insecure []string      // hosts that are asked without TLS
	Keychain bool          // whether the user's registry logins are used
}

type serverFile struct {
	TrustDomain word           `yaml:"trust_domain" need:"yes" is:"domain" doc:"The SPIFFE trust domain. Permanent: every identity carries it."`
	Data        word           `yaml:"data" is:"text" doc:"The directory of state, keys and ledger. Left out: that of this file."`
	Config      word           `yaml:"config" is:"text" doc:"The directory of declarations. Left out: config in the data directory."`
	Listen      listenFile     `yaml:"listen" doc:"Where agents and enforcement points connect."`
	Sockets     socketsFile    `yaml:"sockets" doc:"The Unix sockets."`
	Operators   []operatorFile `yaml:"operators" need:"yes" doc:"The people who manage the server from this host."`
	Issuer      issuerFile     `yaml:"issuer" doc:"The issuer of JWT-SVIDs."`
	GrantIssuer issuerFile     `yaml:"grant_issuer" doc:"The issuer of grant tokens, which targets trust. Never the issuer of JWT-SVIDs."`
	Attest      serverAttest   `yaml:"attest" doc:"Attestation of processes on this host."`
	Registry    registryFile   `yaml:"registry" doc:"How image tags are resolved to digests."`
	Quotas      quotasFile     `yaml:"quotas" doc:"What each principal may ask. What is beyond is refused before it is decided, and not recorded."`
	Opinion     opinionFile    `yaml:"second_opinion" doc:"How many decisions OPA judges again, on the printed policy, beside the path of answers. A difference ends the grant and is a finding."`
	Authors     *authorsFile   `yaml:"authors" doc:"Who signs the declarations. Left out: they are not signed."`
	Witnesses   *witnessesFile `yaml:"witnesses" doc:"Who cosigns the ledger's checkpoints (C2SP tlog-witness). Left out: nobody."`
	Ceiling     *ceilingsFile  `yaml:"ceiling" doc:"What bounds the declarations. Left out: what the directory ceiling holds, unsigned."`
	Federates   []partnerFile  `yaml:"federates" doc:"Other trust domains whose X.509-SVIDs count here, for agents that are listed with an id of theirs."`
	Jobs        []jobFile      `yaml:"jobs" doc:"Which CI jobs log in, by the tokens that their CI system gives them, to start runs and add evidence. Left out: none."`
	People      *peopleFile    `yaml:"people" doc:"How people log in from elsewhere, with remit login. Left out: nobody can."`
	Findings    *findingsFile  `yaml:"findings" doc:"What the ledger shows to be odd, and what is done about it."`
	Announce    []announceFile `yaml:"announce" doc:"Which webhooks are told of requests that wait for people. Left out: none."`
	Metrics     metricsFile    `yaml:"metrics" doc:"Figures for Prometheus, at /metrics of the HTTPS address. Left out: there is none."`
	Signals     []signalFile   `yaml:"signals" doc:"Which receivers are told of findings and suspensions. Left out: none."`
	Telemetry   *telemetryFile `yaml:"telemetry" doc:"Which OpenTelemetry collector is sent traces and metrics. Left out: none, and no traces are made."`
}

type metricsFile struct {
	Token SecretRef `yaml:"token" doc:"The bearer token of who reads them, at least 24 characters."`
}

type witnessesFile struct {
	Quorum *int64        `yaml:"quorum" doc:"How many cosignatures a checkpoint needs to be published. Left out: all."`
	List   []witnessFile `yaml:"list" need:"yes" doc:"The witnesses."`
}

type witnessFile struct {
	URL word `yaml:"url" need:"yes" is:"text" doc:"Where it is asked; /add-checkpoint is added. What it answers is verified by its key."`
	Key word `yaml:"key" need:"yes" is:"text" doc:"Its public key, as remit witness init printed it."`
}

type listenFile struct {
	HTTPS word   `yaml:"https" is:"text" doc:"HOST:PORT. Left out: 127.0.0.1:8443."`
	Names []word `yaml:"names" is:"text" doc:"The DNS names and addresses in the server's certificate. Left out: localhost, 127.0.0.1."`
}

type socketsFile struct {
	Workload word `yaml:"workload" is:"text" doc:"The SPIFFE Workload API. Left out: run/workload.sock in the data directory."`
	Admin    word `yaml:"admin" is:"text" doc:"The management API. Left out: run/admin.sock in the data directory."`
	Group    *int `yaml:"admin_group" doc:"The id of a group whose members may connect to the admin socket; who of them is an operator, operators says. Left out: only the server's own user, and root."`
}

type operatorFile struct {
	Name  word    `yaml:"name" need:"yes" is:"label" doc:"The person is operator/NAME."`
	UID   *uint32 `yaml:"uid" need:"yes" doc:"The user on this host."`
	Roles []word  `yaml:"roles" need:"yes" is:"role" doc:"What the person may do; admin includes all."`
	// Subject lets one person come both ways.
	Subject word `yaml:"subject" is:"text" doc:"The person's sub at the issuer of people. Left out: no login is given this name."`
}

type issuerFile struct {
	URL word `yaml:"url" is:"url" doc:"Its URL. Left out: https:// with the first name and the port of listen; for grants with /grants."`
}

type serverAttest struct {
	AllowOwnUID bool `yaml:"allow_own_uid" doc:"Whether a process under the server's own user counts as attested. For trying things out only: such a process could read the server's keys. Left out: false."`
}

type opinionFile struct {
	OneIn *int32 `yaml:"one_in" doc:"One in so many. Left out: 100; 1: all."`
}

type registryFile struct {
	Timeout  time.Duration `yaml:"timeout" doc:"For one resolution."`
	Insecure []string      `yaml:"insecure" doc:"Hosts that are asked without TLS."`
	Keychain bool          `yaml:"keychain" doc:"Whether the registry logins of the server's user are used. Left out: false."`
}

// LoadServer reads the server's file as strictly as Load reads declarations. A file that others can write is refused.
func LoadServer(name string) (*ServerConfig, error) {
	b, err := readServer(name)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	return ParseServer(name, b, filepath.Dir(abs))
}

func readServer(name string) (_ []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l := &loader{out: &problems{}}
	l.above(name)
	if !l.owned(f, name) || l.out.err() != nil {
		return nil, l.out.err()
	}
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// ParseServer parses the server's file; dir is where its relative paths start.
func ParseServer(name string, body []byte, dir string) (*ServerConfig, error) {
	out := &problems{}
	docs := documents(name, body, out)
	if len(docs) != 1 && out.err() == nil {
		out.add(name, 0, "expected one document, found %d", len(docs))
	}
	if err := out.err(); err != nil {
		return nil, err
	}
	var f serverFile
	(&decoder{file: name, out: out}).decode(docs[0], reflect.ValueOf(&f).Elem(), "")
	if err := out.err(); err != nil {
		return nil, err
	}
	s := f.config(name, dir, out)
	return s, out.err()
}

func (f *serverFile) config(name, dir string, out *problems) *ServerConfig {
	s := &ServerConfig{AllowOwnUID: f.Attest.AllowOwnUID, Registry: RegistryConfig(f.Registry), AdminGroup: -1}
	if f.Sockets.Group != nil {
		s.AdminGroup = *f.Sockets.Group
	}
	if f.People != nil {
		s.People = f.People.config(name, dir, out)
	}
	td, err := spiffeid.TrustDomainFromString(f.TrustDomain.s)
	if err != nil {
		out.add(name, f.TrustDomain.line, "trust_domain: %v: write company.com", err)
	}
	s.TrustDomain = td
	s.Data = under(dir, or(f.Data.s, "."))
	s.Config = under(dir, or(f.Config.s, filepath.Join(s.Data, "config")))
	s.Workload = f.socket(under(dir, or(f.Sockets.Workload.s, filepath.Join(s.Data, "run", "workload.sock"))), name, f.Sockets.Workload.line, out)
	s.Admin = f.socket(under(dir, or(f.Sockets.Admin.s, filepath.Join(s.Data, "run", "admin.sock"))), name, f.Sockets.Admin.line, out)
	//remit:guard S2 TestServer
	if s.Admin == s.Workload {
		out.add(name, f.Sockets.Admin.line, "sockets: admin and workload are one path: agents would reach the management; choose two")
	}
	s.Quotas = f.Quotas.config(name, out)
	s.SecondOpinion = 100
	if n := f.Opinion.OneIn; n != nil {
		if s.SecondOpinion = int(*n); *n < 1 {
			out.add(name, f.TrustDomain.line, "second_opinion: one_in: %d: write 1 or more", *n)
		}
	}
	f.listen(s, name, out)
	f.federates(s, name, dir, out)
	f.operators(s, name, out)
	f.jobs(s, name, dir, out)
	f.announce(s, name, dir, out)
	f.signals(s, name, dir, out)
	f.telemetry(s, name, dir, out)
	if s.Metrics = f.Metrics.Token; s.Metrics.File != "" {
		s.Metrics.File = under(dir, s.Metrics.File)
	}
	f.authors(s, name, dir, out)
	f.witnesses(s, name, out)
	f.findings(s, name, out)
	return s
}

func (f *serverFile) witnesses(s *ServerConfig, name string, out *problems) {
	if f.Witnesses == nil {
		return
	}
	for _, w := range f.Witnesses.List {
		u, err := url.Parse(w.URL.s)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" {
			out.add(name, w.URL.line, "witnesses: %q is no URL of a witness: write https://HOST/PATH", clip(w.URL.s))
		}
		s.Witnesses = append(s.Witnesses, Witness{u, w.Key.s})
	}
	if q := f.Witnesses.Quorum; q != nil {
		s.Quorum = int(*q)
	}
	if len(s.Witnesses) == 0 || f.Witnesses.Quorum != nil && (s.Quorum < 1 || s.Quorum > len(s.Witnesses)) {
		out.add(name, f.TrustDomain.line, "witnesses: quorum: %d of %d cannot be: list witnesses, and a quorum of 1 to all of them", s.Quorum, len(s.Witnesses))
	}
}

// maxSocketPath is the length that fits into a Unix socket address on Linux.
const maxSocketPath = 107

func (f *serverFile) socket(path, name string, line int, out *problems) string {
	if len(path) > maxSocketPath {
		out.add(name, line, "the socket path %s has %d characters, at most %d fit: set sockets to a shorter one", path, len(path), maxSocketPath)
	}
	return path
}

func (f *serverFile) listen(s *ServerConfig, name string, out *problems) {
	s.HTTPS, s.Names = or(f.Listen.HTTPS.s, "127.0.0.1:8443"), []string{"localhost", "127.0.0.1"}
	_, port, err := net.SplitHostPort(s.HTTPS)
	if err != nil {
		out.add(name, f.Listen.HTTPS.line, "listen: https: %v: write HOST:PORT", err)
	}
	if f.Listen.Names != nil {
		s.Names = nil
		for _, w := range f.Listen.Names {
			s.Names = append(s.Names, w.s)
		}
	}
	if len(s.Names) == 0 {
		out.add(name, f.Listen.HTTPS.line, "listen: names is empty: write the names under which the server is reached")
		return
	}
	base := "https://" + net.JoinHostPort(s.Names[0], port)
	s.Issuer, s.GrantIssuer = or(f.Issuer.URL.s, base), or(f.GrantIssuer.URL.s, base+"/grants")
	//remit:guard S1 TestServer
	if strings.TrimRight(s.Issuer, "/") == strings.TrimRight(s.GrantIssuer, "/") {
		out.add(name, f.GrantIssuer.URL.line, "issuer and grant_issuer are one: a target would take an agent's own token for a grant; choose two URLs")
	}
}

func (f *serverFile) operators(s *ServerConfig, name string, out *problems) {
	//remit:guard S2 TestServer
	if len(f.Operators) == 0 {
		out.add(name, f.TrustDomain.line, "operators is empty: nobody could manage the server")
	}
	for _, o := range f.Operators {
		op := Operator{Name: remit.Name("operator/" + o.Name.s), UID: *o.UID, Subject: o.Subject.s}
		for _, r := range o.Roles {
			op.Roles = append(op.Roles, r.s)
		}
		//remit:guard S2 TestServer
		if slices.ContainsFunc(s.Operators, func(p Operator) bool { return p.Name == op.Name || p.UID == op.UID }) {
			out.add(name, o.Name.line, "operators: %s or uid %d stands twice: the ledger could not tell who it was", o.Name.s, op.UID)
		}
		s.Operators = append(s.Operators, op)
	}
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func under(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// DefaultServer returns a commented remit.yaml for the user uid as operator/OPERATOR; https empty is 127.0.0.1:8443.
func DefaultServer(trustDomain, operator string, uid uint32, https string) []byte {
	host, port, err := net.SplitHostPort(or(https, "127.0.0.1:8443"))
	names := "localhost, 127.0.0.1"
	if ip := net.ParseIP(host); err == nil && host != "localhost" && host != "127.0.0.1" && host != "" && (ip == nil || !ip.IsUnspecified()) {
		names = fmt.Sprintf("%q, %s", host, names)
	}
	return fmt.Appendf(nil, defaultServer, trustDomain, net.JoinHostPort(host, port), names, operator, uid)
}

const defaultServer = `# The server's own file. Relative paths start here. Every key: remit's reference of files, section remit.yaml.

# Permanent: every identity carries it.
trust_domain: %s

# State, keys and ledger; the declarations (agents, tools, workflows, targets, evidence sources, rules).
data: .
config: config

# Where agents and enforcement points connect, and the names in the server's certificate.
listen:
  https: %q
  names: [%s]

# Who manages the server from this host, by user. Roles: admin (includes all), author, approver, responder, auditor.
operators:
- {name: %s, uid: %d, roles: [admin]}

# Processes that run under the server's own user could read its keys, so they prove nothing. Set this to true only to try
# things out.
attest:
  allow_own_uid: false
`
