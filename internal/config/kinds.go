// SPDX-License-Identifier: Apache-2.0

package config

import (
	"reflect"

	"go.yaml.in/yaml/v3"
)

// kind is one kind of document.
type kind struct {
	name string
	typ  reflect.Type
	doc  string
}

func kinds() []kind {
	return []kind{
		{"Agent", reflect.TypeFor[agentFile](), "An autonomous agent: its identity, how a process proves that it is the agent, and who may launch it."},
		{"Tool", reflect.TypeFor[toolFile](), "A tool with an identity of its own, `tool/NAME`: the keys of an Agent, and its MCP server. One MCP server is one Tool."},
		{"Workflow", reflect.TypeFor[workflowFile](), "A declared plan: who may start it with which parameters, and what each stage may do. What no stage permits is denied."},
		{"Target", reflect.TypeFor[targetFile](), "A configured backend. The keys of its type stand beside these."},
		{"EvidenceSource", reflect.TypeFor[sourceFile](), "Who vouches for facts. The keys of its type stand beside these."},
		{"EnforcementPoint", reflect.TypeFor[pepFile](), "An enrolled identity that may ask for decisions about other identities."},
		{"Rule", reflect.TypeFor[ruleFile](), "A rule of the organisation in Rego. It can deny, hold or narrow, never allow."},
		{"Ceiling", reflect.TypeFor[ceilingFile](), "What every workflow must stay within. It stands in a directory of its own, signed by its own keys; a workflow that exceeds it is an error at load. With several, each bounds."},
	}
}

type head struct {
	Kind string `yaml:"kind" need:"yes" doc:"The kind of the document."`
	Name word   `yaml:"name" need:"yes" is:"label" doc:"The name, one per kind."`
}

type agentFile struct {
	head      `yaml:",inline"`
	Owner     word         `yaml:"owner" is:"text" doc:"Who answers for it: a team or a person."`
	ID        word         `yaml:"id" is:"spiffe" doc:"Its SPIFFE ID. Left out: spiffe://TRUST-DOMAIN/agent/NAME, for a tool /tool/NAME."`
	TTL       span         `yaml:"ttl" doc:"How long its X.509-SVIDs live. Left out: 10m; at most 1h."`
	Attest    []attestFile `yaml:"attest" doc:"How a process on this host proves the identity; one entry is enough. Left out: only by launch or sandbox."`
	Vouched   word         `yaml:"vouched" is:"level" doc:"For an id of a federated trust domain: how well its processes are known there, which nobody here can see. Left out: none."`
	Audiences []word       `yaml:"audiences" is:"text" doc:"For whom it may fetch JWT-SVIDs. Never a target: targets trust the grant issuer only."`
	Launch    *launchFile  `yaml:"launch" doc:"Who may start a process with this identity. Left out: nobody."`
}

type attestFile struct {
	Unix unixFile `yaml:"unix" need:"yes" doc:"A process that connects to the Workload API socket. All that stands here must hold; uid or gid must stand, for a path says nothing about who runs it."`
}

type unixFile struct {
	UID    *uint32 `yaml:"uid" doc:"Its user."`
	GID    *uint32 `yaml:"gid" doc:"Its group."`
	Path   word    `yaml:"path" is:"path" doc:"The path of its executable."`
	SHA256 word    `yaml:"sha256" is:"hex" doc:"The digest of its executable."`
}

type launchFile struct {
	By       []word   `yaml:"by" need:"yes" is:"person" doc:"The people who may launch it."`
	_        struct{} `one:"command,commands"`
	Command  word     `yaml:"command" is:"digest" doc:"The digest of the executable that may be launched."`
	Commands []word   `yaml:"commands" is:"digest" doc:"The same for several executables."`
	UID      *uint32  `yaml:"uid" doc:"The user of the process. Left out: the launcher's."`
	Inherit  bool     `yaml:"inherit" doc:"Whether processes that it starts may use its socket. Left out: false."`
	Sandbox  *boxFile `yaml:"sandbox" doc:"The sandbox that Remit starts it in: its only ways out are Remit and the targets of type http that the stage permits. Left out: none."`
}

type workflowFile struct {
	head       `yaml:",inline"`
	Parameters map[string]parameterFile `yaml:"parameters" doc:"The typed inputs of a run, by name. All are required when a run starts."`
	Start      startFile                `yaml:"start" need:"yes" doc:"Who may start a run."`
	Stages     []stageFile              `yaml:"stages" need:"yes" doc:"The stages, in order. A run never goes back."`
}

type parameterFile struct {
	Type    word      `yaml:"type" need:"yes" is:"paramtype" doc:"name (a DNS name), string, integer, number, boolean, or image (a tag is resolved to a digest when the run starts)."`
	Pattern *pattern  `yaml:"pattern" doc:"A regular expression (RE2) that a name or string must match as a whole."`
	Min     *number   `yaml:"min" doc:"The least integer or number."`
	Max     *number   `yaml:"max" doc:"The greatest integer or number."`
	OneOf   []literal `yaml:"one_of" doc:"The only values."`
	Source  word      `yaml:"source" is:"field" doc:"Where the value comes from: a field of evidence, such as ticket.customer. Left out: from who starts the run."`
	// Sensitive is S33.
	Sensitive bool `yaml:"sensitive" doc:"Whether its value, and that of each argument that is bound to it, stands nowhere in clear: not in the ledger, its payloads or the stored state. Left out: false."`
}

type startFile struct {
	By      []word       `yaml:"by" need:"yes" is:"principal" doc:"Who may start a run. An operator is not declared in files but in remit.yaml."`
	Expires span         `yaml:"expires" doc:"How long a run lives. Left out: 1h; at most 168h."`
	PerHour *perHourFile `yaml:"per_hour" doc:"How much one starter may start in an hour. Left out: 200 runs, about 100 values."`
	Self    bool         `yaml:"self" doc:"Whether an identity that stands in a may entry may also start the run. Then every parameter that a where uses needs a source: an agent's own word binds nothing. Left out: false."`
}

type perHourFile struct {
	Runs   *int32 `yaml:"runs" doc:"How many runs of this workflow. Left out: 200; at most 100000."`
	Values *int32 `yaml:"values" doc:"About how many distinct values of any one parameter with a source, such as customers. Left out: 100; at most 100000."`
}

type stageFile struct {
	Name    word      `yaml:"name" need:"yes" is:"label" doc:"The name, one per workflow."`
	Expires span      `yaml:"expires" doc:"How long the stage lives, and with it the run. Left out: as long as the run."`
	End     endFile   `yaml:"end" doc:"Who may leave the stage. Left out: who started the run."`
	May     []mayFile `yaml:"may" need:"yes" doc:"What may be done, in order: the first entry whose conditions hold decides."`
}

type endFile struct {
	By   []word `yaml:"by" need:"yes" is:"principal" doc:"Who."`
	When []word `yaml:"when" is:"exitfact" doc:"What must be in the ledger before the stage is left: PERMISSION allowed, PERMISSION granted or PERMISSION executed (and succeeded), of this stage. Left out: nothing. A run can be finished without."`
}

type mayFile struct {
	Name      word              `yaml:"name" need:"yes" is:"label" doc:"The name, one per workflow."`
	Who       word              `yaml:"who" need:"yes" is:"actor" doc:"The agent or tool."`
	Under     word              `yaml:"under" is:"label" doc:"Only inside a call that this permission of the same stage allowed."`
	Action    word              `yaml:"action" need:"yes" is:"action" doc:"What, such as kubernetes.apply."`
	Target    word              `yaml:"target" need:"yes" is:"aim" doc:"On which target; for mcp.* a tool: NAME, or NAME/MCPTOOL where the server's tool has another name."`
	Where     args              `yaml:"where" doc:"Conditions on the arguments. An argument that is not named must be absent."`
	Hours     *hoursFile        `yaml:"hours" doc:"When. Left out: always."`
	Evidence  []requirementFile `yaml:"evidence" doc:"The verified facts it needs; all of them."`
	Limits    *limitsFile       `yaml:"limits" doc:"Bounds that are told to an enforcement point which asks by AuthZEN, and which it holds the act to. Of what Remit itself mints or passes on, PostgreSQL views with limit_by hold them; elsewhere nobody would, and such a request is denied."`
	Sandbox   word              `yaml:"sandbox" is:"tier" doc:"The least tier: remote, process, kernel or vm; for mcp.* of the tool that is called, else of the caller. Left out: kernel for mcp.* and with under, else none."`
	Sensitive []word            `yaml:"sensitive" is:"arg" doc:"Arguments whose values stand nowhere in clear, beside those that are bound to a sensitive parameter."`
	TTL       span              `yaml:"ttl" doc:"How long a credential lives. Left out: 5m; at most 1h."`
}

type limitsFile struct {
	Rows *int64 `yaml:"rows" need:"yes" doc:"How many rows a call returns at most."`
}

type hoursFile struct {
	Days days `yaml:"days" need:"yes" doc:"mon-fri, or a list of days and spans."`
	From word `yaml:"from" need:"yes" is:"clock" doc:"From this minute. Later than to: over midnight, and the window belongs to the day it starts on."`
	To   word `yaml:"to" need:"yes" is:"clock" doc:"Up to this minute, exclusive; 24:00 is the end of the day."`
	Zone word `yaml:"zone" need:"yes" is:"zone" doc:"The time zone, by its IANA name."`
}

type requirementFile struct {
	_          struct{}        `one:"scan,provenance,ticket,ci,approval"`
	Scan       *scanFile       `yaml:"scan" doc:"A vulnerability scan of an image."`
	Provenance *provenanceFile `yaml:"provenance" doc:"Who built an image, from what."`
	Ticket     *ticketFile     `yaml:"ticket" doc:"A change ticket, read from its system."`
	CI         *provenanceFile `yaml:"ci" doc:"The CI run that built an image. The same keys as provenance."`
	Approval   *approvalFile   `yaml:"approval" doc:"A person's answer to exactly this request. It counts for one decision."`
}

type scanFile struct {
	ID     *term `yaml:"id" doc:"The id of the scan. Left out: the newest."`
	Of     term  `yaml:"of" need:"yes" doc:"The image: a parameter of type image, or an image with its digest."`
	Source word  `yaml:"source" need:"yes" is:"label" doc:"The evidence source."`
	Worst  word  `yaml:"worst" is:"severity" doc:"The worst finding that still passes. Left out: any."`
	Within span  `yaml:"within" doc:"The greatest age. Left out: any."`
}

// Every key of provenanceFile beside of, source and within is a field of the fact that must be equal.
type provenanceFile struct {
	Of     term `yaml:"of" need:"yes" doc:"The image: a parameter of type image, or an image with its digest."`
	Source word `yaml:"source" need:"yes" is:"label" doc:"The evidence source."`
	Within span `yaml:"within" doc:"The greatest age. Left out: any."`

	Repository        *term `yaml:"repository" doc:"The source repository, such as company/foo."`
	RepositoryURL     *term `yaml:"repository_url" doc:"The same in full."`
	Ref               *term `yaml:"ref" doc:"The full ref, such as refs/heads/main."`
	Commit            *term `yaml:"commit" doc:"The commit."`
	Version           *term `yaml:"version" doc:"What a tag ref proves: refs/tags/v1.2 is v1.2."`
	Builder           *term `yaml:"builder" doc:"The builder's id."`
	BuildType         *term `yaml:"build_type" doc:"The build type."`
	Workflow          *term `yaml:"workflow" doc:"The path of the CI workflow's file."`
	Event             *term `yaml:"event" doc:"What triggered the CI run."`
	RepositoryID      *term `yaml:"repository_id" doc:"The immutable id of the repository."`
	RepositoryOwnerID *term `yaml:"repository_owner_id" doc:"The immutable id of its owner."`
	Environment       *term `yaml:"environment" doc:"The CI environment."`
	RefProtected      *term `yaml:"ref_protected" doc:"\"true\": only reviewed changes reach the ref."`
}

type ticketFile struct {
	ID     term             `yaml:"id" need:"yes" doc:"The id of the ticket."`
	Source word             `yaml:"source" need:"yes" is:"label" doc:"The evidence source."`
	Within span             `yaml:"within" doc:"The greatest age. Left out: any."`
	Match  map[string]*term `yaml:",rest" doc:"Every other key is a field of the ticket that must be equal: state, service, namespace …"`
}

type approvalFile struct {
	When   args `yaml:"when" is:"when" doc:"Conditions on the arguments, with {above: NUMBER} beside those of where. Left out: always."`
	Group  word `yaml:"group" need:"yes" is:"label" doc:"Of which group the people must be, as their identity provider states it at the login."`
	People *int `yaml:"people" doc:"How many. Left out: 1."`
	By     word `yaml:"by" is:"notstarter" doc:"not-starter says what holds in any case: nobody approves what he started or asked for, what his own agent does, or what a workflow says that he applied or signed."`
	Within span `yaml:"within" need:"yes" doc:"How long to wait for them, and how long an approval that nobody used counts."`
}

type targetFile struct {
	head       `yaml:",inline"`
	Type       word      `yaml:"type" need:"yes" is:"label" doc:"Which driver, such as kubernetes."`
	Production bool      `yaml:"production" doc:"Whether agents must have been launched by Remit or better. Left out: false."`
	Spec       yaml.Node `yaml:",rest" doc:"The keys of the driver."`
}

type sourceFile struct {
	head `yaml:",inline"`
	Type word      `yaml:"type" need:"yes" is:"sourcetype" doc:"Which facts: scan, provenance, ticket, ci (by signed provenance) or ci-token (ci by the tokens of CI jobs)."`
	Spec yaml.Node `yaml:",rest" doc:"The keys of the type."`
}

type pepFile struct {
	head         `yaml:",inline"`
	ID           word         `yaml:"id" is:"spiffe" doc:"Its SPIFFE ID. Left out: spiffe://TRUST-DOMAIN/pep/NAME."`
	Actions      []word       `yaml:"actions" need:"yes" is:"actions" doc:"For which actions it may ask: names, or KIND.*."`
	TrustDomains []word       `yaml:"trust_domains" is:"domain" doc:"Of which trust domains its subjects may be. Left out: ours."`
	Attest       []attestFile `yaml:"attest" doc:"How a process on this host proves the identity; one entry is enough. Left out: its SVID comes from elsewhere."`
	Assert       bool         `yaml:"assert" doc:"Whether it may name subjects without their token; such subjects are marked asserted. Left out: false."`
}

type ruleFile struct {
	_    struct{} `one:"rego,file"`
	head `yaml:",inline"`
	Rego word `yaml:"rego" is:"module" doc:"The module."`
	File word `yaml:"file" is:"rego" doc:"The module's file."`
}
