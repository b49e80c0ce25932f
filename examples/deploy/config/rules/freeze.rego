# An organisation's rule may deny, hold or narrow what a workflow allows. It can never allow.
package remit.rules

deny contains "the year's end freeze" if {
	[_, month, day] := time.date(time.parse_rfc3339_ns(input.at))
	month == 12
	day >= 20
}

# A payment service is deployed with credentials that live two minutes.
ttl := "2m" if startswith(input.args.name, "payment-")
