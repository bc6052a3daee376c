-- description: Cost per UTC day, principal and model.

create view cost_daily as
select
    strftime('%Y-%m-%d', reserved_ms / 1000, 'unixepoch') as day,
    root,
    principal_id,
    provider,
    model,
    sum(cost_nanos)     as cost_nanos,
    sum(requests)       as requests,
    sum(tokens)         as tokens,
    sum(input_tokens)   as input_tokens,
    sum(output_tokens)  as output_tokens,
    sum(expected_nanos) as expected_nanos,
    count(*)            as entries
from cost_tracking
group by 1, 2, 3, 4, 5;
