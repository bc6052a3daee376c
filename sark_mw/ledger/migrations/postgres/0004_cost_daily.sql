-- description: Cost per UTC day, principal and model; with TimescaleDB a continuous aggregate of this name replaces it.

create view cost_daily as
select
    date_bin('1 day', reserved_at, timestamptz '2000-01-01 00:00:00+00') as day,
    root,
    principal_id,
    provider,
    model,
    sum(cost_nanos)     as cost_nanos,
    sum(cost_usd)       as cost_usd,
    sum(requests)       as requests,
    sum(tokens)         as tokens,
    sum(input_tokens)   as input_tokens,
    sum(output_tokens)  as output_tokens,
    sum(expected_nanos) as expected_nanos,
    count(*)            as entries
from cost_tracking
group by 1, 2, 3, 4, 5;
