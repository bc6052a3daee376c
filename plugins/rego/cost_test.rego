# `opa test plugins/rego`. sark_mw leaves files of this name out.
package sark.cost_test

import data.sark.cost
import rego.v1

request(changes) := object.union(
	{
		"principal": "user:alice",
		"model": "gpt-4o",
		"estimated_usd": 0.2,
		"scopes": ["user:alice", "team:ml"],
		"limits": [{"scope": "team:ml", "unit": "usd", "amount": 100, "spent": 10, "held": 0, "remaining": 90, "used": 0.1}],
	},
	changes,
)

budget(used) := {"limits": [{"scope": "team:ml", "unit": "usd", "remaining": 100 * (1 - used), "used": used}]}

test_a_request_within_its_budget_is_allowed if {
	decision := cost.decision with input as request({})
	decision == {"allow": true, "obligations": {}}
}

test_without_an_input_nothing_is_allowed if {
	not cost.decision.allow with input as {}
}

test_with_half_of_an_input_nothing_is_allowed if {
	every field in ["principal", "model", "estimated_usd", "scopes", "limits"] {
		decision := cost.decision with input as json.remove(request({}), [field])
		decision == {"allow": false, "reason": "the input is missing"}
	}
}

test_a_limit_whose_figures_are_none_allows_nothing if {
	decision := cost.decision with input as request({"limits": [{"scope": "team:ml", "unit": "usd", "used": "0.9"}]})
	not decision.allow
}

test_beyond_80_percent_only_small_models_are_left if {
	large := cost.decision with input as request(budget(0.9))
	large == {"allow": false, "reason": "use the small model"}
	small := cost.decision with input as object.union(request(budget(0.9)), {"model": "gpt-4o-mini"})
	small == {"allow": true, "obligations": {"cap_output_tokens": 500}}
}

test_no_single_request_takes_more_than_a_tenth_of_what_is_left if {
	decision := cost.decision with input as request({"estimated_usd": 9.5})
	contains(decision.reason, "takes too much of the budget of team:ml")
}

test_a_dear_run_needs_the_tag if {
	plain := cost.decision with input as request({"estimated_usd": 6})
	contains(plain.reason, "approval")
	tagged := cost.decision with input as request({"estimated_usd": 6, "scopes": ["user:alice", "tag:approved"]})
	tagged.allow
}
