// SPDX-License-Identifier: Apache-2.0

package policy

// preamble is the part of the printed policy that every revision shares. It is written apart from the plan's Go, against the
// same text, so that comparing the two means something.
const preamble = `# The workflows of one Remit policy revision, printed by "remit policy export".
#
#   opa eval --strict-builtin-errors -d policy.rego -d rules -i input.json data.remit.decision
#
# gives the answer that Remit gave. An error of opa eval is a denial. The input is described in the policy guide.
package remit

default decision := {"effect": "deny", "permission": "", "reasons": [{"code": "fault", "of": "policy"}], "ttl_ns": 0}

decision := answer("deny", matched, input.outside, 0) if {
	count(input.outside) > 0
} else := answer("deny", "", changed, 0) if {
	count(changed) > 0
} else := answer("deny", "", refused, 0) if {
	count(holding) == 0
} else := answer("deny", matched, unresolved[chosen], 0) if {
	count(unresolved[chosen]) > 0
} else := answer("deny", matched, lacking, 0) if {
	some r in lacking
	r.code != "approval_needed"
} else := answer("deny", matched, lacking | rule_faults, 0) if {
	count(rule_faults) > 0
} else := answer("deny", matched, lacking | rule_denials, 0) if {
	count(rule_denials) > 0
} else := answer("hold", matched, lacking | rule_holds, 0) if {
	count(lacking | rule_holds) > 0
} else := answer("allow", matched, [], min(ttls))

answer(effect, permission, reasons, ttl) := {"effect": effect, "permission": permission, "reasons": sorted, "ttl_ns": ttl} if {
	sorted := sort({{"code": r.code, "of": r.of} | some r in reasons})
}

# These exist even where no permission adds to them.
permission.none := {} if false

difference.none contains {} if false

unresolved.none contains {} if false

lack.none contains {} if false

# Where the run stands.
workflow := workflows[input.run.workflow]

changed contains {"code": "workflow_changed", "of": "workflow"} if not workflow

changed contains {"code": "workflow_changed", "of": "workflow"} if workflow.digest != input.run.digest

changed contains {"code": "workflow_changed", "of": "stage"} if {
	workflow.digest == input.run.digest
	not workflow.stages[input.run.stage]
}

# The first permission without a difference, in file order; else the nearest one's differences.
candidates := [id |
	some id in workflow.stages[input.run.stage][[input.agent, input.action, input.target]]
	input.asked.permission in ["", permission[id].name]
]

differences(id) := {d | some d in difference[id]} | {{"code": "argument_mismatch", "of": concat("", ["where.", k])} |
	some k, v in input.args
	v != null
	not k in permission[id].named
}

holding := [id | some id in candidates; count(differences(id)) == 0]

chosen := holding[0]

default matched := ""

matched := permission[chosen].name

default refused := [{"code": "not_permitted", "of": ""}]

refused := differences(candidates[nearest[1]]) if {
	nearest := min({[count(differences(id)), i] | some i, id in candidates})
}

# What the chosen permission needs and does not have.
lacking := {l | some l in lack[chosen]}

fact(i) := e if {
	e := input.evidence[i]
	not e.reason
}

absent(i, _) := input.evidence[i].reason

absent(i, of) := {"code": "evidence_missing", "of": of} if not input.evidence[i].reason

absent_approval(i) := input.evidence[i].reason

absent_approval(i) := {"code": "approval_needed", "of": "evidence.approval"} if not input.evidence[i].reason

now := time.parse_rfc3339_ns(input.at)

fresh(e, within) if {
	made := time.parse_rfc3339_ns(dated(e.made))
	made <= now + 60000000000
	young(now - made, within)
	lasting(e.until)
}

# dated is undefined for no time, before OPA's parser could fail on it.
dated(t) := t if t != ""

young(_, within) if within == 0

young(age, within) if {
	within > 0
	age <= within
}

lasting("")

lasting(until) if time.parse_rfc3339_ns(dated(until)) > now

rank := {"none": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}

text(x) := x if {
	is_string(x)
	x != ""
}

text(x) := json.marshal(x) if is_number(x)

text(x) := json.marshal(x) if is_boolean(x)

digest(x) := split(x, "@")[1] if {
	is_string(x)
	count(x) <= 512
	regex.match(` + "`" + imagePattern + "`" + `, x)
}

within(x, terms) if {
	not is_array(x)
	x in terms
}

within(x, terms) if {
	is_array(x)
	count(x) > 0
	every e in x { e in terms }
}

overlaps(x, terms) if {
	not is_array(x)
	x in terms
}

overlaps(x, terms) if x in terms

overlaps(x, terms) if {
	is_array(x)
	some e in x
	e in terms
}

overlaps([], _)

present(x) if x != null

unnamed(o, names) if {
	some k, v in o
	v != null
	not k in names
}

clock(zone) := {"day": time.weekday([now, zone]), "minute": (60 * c[0]) + c[1]} if c := time.clock([now, zone])

# How long the answer lasts.
ttls contains permission[chosen].ttl_ns

ttls contains input.asked.ttl_ns if input.asked.ttl_ns > 0

ttls contains rule_ttl

ttls contains time.parse_rfc3339_ns(dated(e.until)) - now if some e in input.evidence

ttls contains time.parse_rfc3339_ns(dated(e.until)) - now if some e in input.approvals

# The organisation's rules, which can only narrow.
ruled := r if r := data.remit.rules with input.permission as matched

said(output) := object.get(ruled, output, null)

tier_rank := {"remote": 0, "process": 1, "kernel": 2, "vm": 3}

tiered("remote")

tiered(least) if tier_rank[input.sandbox.tier] >= tier_rank[least]

launched if input.level in ["launched", "sandbox", "node"]

rule_denials contains {"code": "organisation_rule", "of": rule_of.deny} if some _ in said("deny")

# What is held waits for a person of each group that the rules name; where they name none, nobody could answer.
rule_denials contains {"code": "organisation_rule", "of": rule_of.hold} if {
	some _ in said("hold")
	count(asked_groups) == 0
}

rule_holds contains {"code": "organisation_rule", "of": rule_of.hold} if {
	some _ in said("hold")
	some group in asked_groups
	not approved(group)
}

asked_groups := {group | some group in said("approvers")}

approved(group) if {
	some e in input.approvals
	not e.reason
	e.kind == "approval"
	e.superseded == ""
	e.fields.group == group
	e.fields.people == "1"
	fresh(e, 900000000000)
}

rule_denials contains {"code": "organisation_rule", "of": rule_of.columns} if {
	some _ in said("columns")
	not within(object.get(input.args, "columns", null), said("columns"))
}

rule_denials contains {"code": "organisation_rule", "of": rule_of.tier} if {
	is_string(said("tier"))
	not tiered(said("tier"))
}

# A result of a wrong name or type is a denial.
rule_faults contains {"code": "organisation_rule", "of": "rules.fault"} if {
	some output, value in ruled
	not valid_output(output, value)
}

valid_output(output, value) if {
	output in ["deny", "hold", "columns", "obligations"]
	every text in value { is_string(text) }
}

valid_output("approvers", value) if {
	count(value) <= 8
	every text in value { is_string(text) }
}

valid_output("ttl", value) if ttl_ns(value)

valid_output("rows", value) if {
	is_number(value)
	value == floor(value)
	value >= 0
	value <= 1000000000000
}

valid_output("tier", value) if value in ["process", "kernel", "vm"]

rule_ttl := ttl_ns(said("ttl"))

ttl_ns(t) := t * 1000000000 if {
	is_number(t)
	t == floor(t)
	t >= 1
	t <= 31622400
}

ttl_ns(t) := ns if {
	is_string(t)
	regex.match(` + "`" + ttlPattern + "`" + `, t)
	ns := time.parse_duration_ns(t)
	ns > 0
	ns <= 31622400000000000
}
`

// imagePattern accepts what remit.ParseImage accepts and has a digest.
const imagePattern = `^[a-zA-Z0-9][a-zA-Z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?@sha256:[0-9a-f]{64}$`
