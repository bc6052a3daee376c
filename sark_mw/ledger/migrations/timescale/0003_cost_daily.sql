-- description: Keep cost per UTC day, principal and model as a continuous aggregate that also counts what is not materialised.
-- needs: community

drop view cost_daily;

-- Without data, since filling it cannot run in a transaction: the next migration does.
create materialized view cost_daily
with (timescaledb.continuous, timescaledb.materialized_only = false) as
select
    time_bucket(interval '1 day', reserved_at) as day,
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
group by 1, 2, 3, 4, 5
with no data;

-- Two whole days are always counted live, older ones refreshed hourly where corrections came in. The start is bounded so that a
-- retention policy, which drops older rows, never empties the days that are already summed up.
select add_continuous_aggregate_policy(
    'cost_daily',
    start_offset => interval '35 days', end_offset => interval '1 day', schedule_interval => interval '1 hour',
    if_not_exists => true
);
