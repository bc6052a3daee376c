# Cost policies in Rego, for an OPA server and for sark_mw's own Rego plugin alike. What `input` holds is in docs/policies.md.
package sark.cost

import rego.v1

# Without an input, or with half of one, nothing is allowed.
default decision := {"allow": false, "reason": "the input is missing"}

decision := {"allow": true, "obligations": obligations} if {
	complete
	count(deny) == 0
}

decision := {"allow": false, "reason": concat("; ", sort(deny))} if {
	complete
	count(deny) > 0
}

complete if {
	is_string(input.principal)
	is_string(input.model)
	is_number(input.estimated_usd)
	is_array(input.scopes)
	is_array(input.limits)
	every limit in input.limits {
		is_number(limit.used)
		is_number(limit.remaining)
	}
}

# The share of a budget, in this policy's own words.
budgets := [limit | some limit in input.limits; limit.unit == "usd"]

highest_share := max([limit.used | some limit in budgets])

# Beyond 80 % of any budget only small models are left.
deny contains "use the small model" if {
	highest_share > 0.8
	not small_model
}

# No single request may take more than a tenth of what is left.
deny contains sprintf("a request of this size takes too much of the budget of %s", [limit.scope]) if {
	some limit in budgets
	input.estimated_usd > limit.remaining / 10
}

deny contains "runs need the team's approval above $5" if {
	input.estimated_usd > 5
	not approved
}

approved if "tag:approved" in input.scopes

small_model if endswith(input.model, "-mini")

small_model if contains(input.model, "haiku")

# From half of a budget on answers are kept short.
obligations := {"cap_output_tokens": 500} if highest_share > 0.5

else := {}
