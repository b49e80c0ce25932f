// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
)

// writeFiles declares the laboratory's agents, workflows, targets and sources.
func (l *lab) writeFiles(context.Context, string) error {
	server := l.path("state", "remit.yaml")
	b, err := os.ReadFile(server)
	if err != nil {
		return err
	}
	self := fmt.Sprintf("- {name: ci, uid: %d, roles: [admin]}", os.Getuid())
	text := strings.Replace(string(b), self, self+fmt.Sprintf("\n- {name: reader, uid: %d, roles: [auditor]}", readerUID), 1)
	if text == string(b) {
		return errors.New("remit.yaml does not list the operator as expected")
	}
	// Else the first stolen token suspends its thief, and nobody learns what the other guards are worth.
	text = l.people() + text + "\nfindings: {suspensions_an_hour: 0}\n"
	tool, err := digestOf(toolPath)
	if err != nil {
		return err
	}
	own, err := digestOf(l.path("remit"))
	if err != nil {
		return err
	}
	files := strings.NewReplacer("@TOOL@", tool, "@REMIT@", own, "@DIR@", l.dir, "@DESK@", l.desk.url, "@ISSUER@", l.issuer.URL, "@UID_DEPLOY@", fmt.Sprint(deployUID), "@UID_OTHER@",
		fmt.Sprint(otherUID), "@UID_IDLE@", fmt.Sprint(idleUID), "@UID_WORKER@", fmt.Sprint(workerUID), "@UID_GATE@", fmt.Sprint(gateUID)).Replace(labFiles + strings.NewReplacer(l.boxes...).Replace(boxFiles))
	files += l.databaseFile()
	if l.cluster != nil {
		files += l.cluster.file(l)
	}
	return errors.Join(os.WriteFile(server, []byte(text), 0o644), os.WriteFile(l.path("desk.token"), []byte(deskToken), 0o600),
		os.WriteFile(l.path("state", "config", "lab.yaml"), []byte(files), 0o644))
}

func digestOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b)), err
}

const labFiles = `kind: Agent
name: deploy
owner: platform-team
audiences: [somebody-else]
attest: [{unix: {uid: @UID_DEPLOY@}}]
---
kind: Agent
name: other
attest: [{unix: {uid: @UID_OTHER@}}]
---
kind: Agent
name: idle
attest: [{unix: {uid: @UID_IDLE@}}]
---
kind: Agent
name: worker
launch:
  by: [operator/ci]
  commands: ["@TOOL@", "@REMIT@"]
  uid: @UID_WORKER@
---
kind: EnforcementPoint
name: gate
actions: ["kubernetes.*"]
attest: [{unix: {uid: @UID_GATE@}}]
---
kind: Target
name: desk-target
type: external
---
kind: Target
name: vault
type: external
production: true
---
kind: EvidenceSource
name: scanner
type: scan
signers: [{name: ci-scanner, key: {file: @DIR@/scanner.pub}}]
---
kind: EvidenceSource
name: builds
type: provenance
signers: [{name: ci-builds, key: {file: @DIR@/builds.pub}}]
---
kind: EvidenceSource
name: releases
type: ci
signers: [{name: ci-builds, key: {file: @DIR@/builds.pub}}]
---
kind: EvidenceSource
name: jobs
type: ci-token
issuer: @ISSUER@
audience: https://remit.company.com
owner_ids: ["42"]
ca: @DIR@/issuer.pem
---
kind: EvidenceSource
name: whole
type: scan
signers: [{name: ci-scanner, key: {file: @DIR@/scanner.pub}}]
platforms: all
---
kind: EvidenceSource
name: several
type: scan
signers: [{name: ci-scanner, key: {file: @DIR@/scanner.pub}}, {name: ci-agents, key: {file: @DIR@/agents.pub}, holder: agent/deploy}]
---
kind: EvidenceSource
name: desk
type: ticket
url: @DESK@/api/changes/{id}
id: "CHG-[0-9]{1,9}"
ca: @DIR@/desk.pem
token: {file: @DIR@/desk.token}
timeout: 2s
fields: {id: /number, state: /state, service: /service, namespace: /namespace, start: /window/start, end: /window/end,
  requester: /requester/login, approver: /approver/login, requester_groups: /requester/groups, approver_groups: /approver/groups}
requester_groups: [platform]
approver_groups: [change-board]
---
kind: Workflow
name: work
parameters: {app: {type: name}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: do
  expires: 30m
  end: {by: [operator/ci, agent/deploy]}
  may:
  - name: act
    who: agent/deploy
    action: kubernetes.apply
    target: desk-target
    where: {namespace: production, kind: Deployment, name: $app}
  - {name: look, who: agent/other, action: kubernetes.get, target: desk-target, where: {name: $app}}
  - {name: open, who: agent/deploy, action: kubernetes.apply, target: vault, where: {name: $app}}
  - {name: launched, who: agent/worker, action: kubernetes.apply, target: vault, where: {name: $app}}
- name: after
  may:
  - {name: late, who: agent/other, action: kubernetes.get, target: desk-target, where: {name: $app}}
---
kind: Workflow
name: payout
parameters: {app: {type: name}}
start: {by: [operator/ci, operator/dave], expires: 1h}
stages:
- name: do
  may:
  - name: pay
    who: agent/deploy
    action: refund.pay
    target: desk-target
    where: {item: $app, level: {pattern: low|high}, note: {any: true}}
    evidence: [{approval: {when: {level: high}, group: finance, people: 1, by: not-starter, within: 15m}}]
  - {name: pay-two, who: agent/deploy, action: refund.pay, target: desk-target, where: {item: $app, level: {pattern: low|top}},
     evidence: [{approval: {when: {level: top}, group: finance, people: 2, by: not-starter, within: 15m}}]}
---
kind: Workflow
name: ship
parameters:
  app:    {type: name}
  image:  {type: image}
  scan:   {type: string}
  ticket: {type: string}
start: {by: [operator/ci], expires: 1h}
stages:
- name: ship
  may:
  - name: scanned
    who: agent/deploy
    action: kubernetes.apply
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{scan: {id: $scan, of: $image, source: scanner, worst: medium, within: 24h}}]
  - name: newest
    who: agent/deploy
    action: kubernetes.create
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{scan: {of: $image, source: scanner, worst: medium, within: 24h}}]
  - name: built
    who: agent/deploy
    action: kubernetes.patch
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{provenance: {of: $image, source: builds, repository: company/foo}}]
  - name: released
    who: agent/deploy
    action: kubernetes.replace
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{ci: {of: $image, source: releases, repository: company/foo, workflow: .github/workflows/release.yml, ref: refs/heads/main, ref_protected: "true"}}]
  - name: vouched
    who: agent/deploy
    action: kubernetes.scale
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{ci: {of: $image, source: jobs, repository: company/foo, repository_id: "4711", workflow: .github/workflows/release.yml, environment: production}}]
  - name: whole
    who: agent/deploy
    action: kubernetes.restart
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{scan: {of: $image, source: whole, worst: medium, within: 24h}}]
  - name: several
    who: agent/deploy
    action: kubernetes.delete
    target: desk-target
    where: {name: $app, image: $image}
    evidence: [{scan: {id: $scan, of: $image, source: several, worst: medium, within: 24h}}]
  - name: ticketed
    who: agent/deploy
    action: kubernetes.update
    target: desk-target
    where: {namespace: production, name: $app}
    evidence: [{ticket: {id: $ticket, source: desk, state: approved, service: $app, namespace: production}}]
---
kind: Workflow
name: theirs
start: {by: [operator/reader], expires: 1h}
stages:
- name: one
  may:
  - {name: look, who: agent/other, action: kubernetes.get, target: desk-target, where: {name: foo}}
---
kind: Workflow
name: refund
parameters:
  customer: {type: integer, min: 1, source: ticket.customer}
start: {by: [operator/ci], expires: 1h}
stages:
- name: one
  may:
  - {name: pay, who: agent/deploy, action: http.post, target: desk-target, where: {customer: $customer}}
---
kind: Workflow
name: private
parameters:
  account: {type: string, sensitive: true}
  app:     {type: name}
start: {by: [operator/ci], expires: 1h}
stages:
- name: one
  may:
  - {name: show, who: agent/deploy, action: http.get, target: desk-target, where: {account: $account, name: $app}}
`
